"""Translates the database errors of an append into errors of the domain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from foldlog.domain.errors import OutcomeUnknown, StorageUnavailable
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import (
    DATABASE_ERRORS,
    is_connection_error,
    is_temporary,
    needs_new_connections,
)


@dataclass(slots=True)
class Attempt:
    """Records whether one append may already have sent its commit to the database.

    If the connection breaks, `append_errors` reads `may_commit`. If it is true, `append_errors`
    raises `OutcomeUnknown`, and otherwise `StorageUnavailable`.
    """

    #: The commit may have been sent. If the connection breaks now, the outcome is unknown.
    may_commit: bool = False


@contextmanager
def append_errors(datastore: Datastore) -> Iterator[Attempt]:
    """Translates the database errors of a `with` block that runs one append.

    If the connection breaks while `Attempt.may_commit` is true, the block raises `OutcomeUnknown`,
    because the events may already be stored. If the connection breaks at another time, the block
    raises `StorageUnavailable`.

    Other temporary database errors also become `StorageUnavailable`. All other database errors are
    raised unchanged.
    """
    attempt = Attempt()
    try:
        yield attempt
    except DATABASE_ERRORS as exc:
        if needs_new_connections(exc):
            datastore.check_pool()
        if is_connection_error(exc):
            raise (OutcomeUnknown() if attempt.may_commit else StorageUnavailable()) from exc
        if is_temporary(exc):
            raise StorageUnavailable() from exc
        raise
