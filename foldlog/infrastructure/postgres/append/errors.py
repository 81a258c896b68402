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
    """Records how far one append has got, because this decides which error is raised."""

    #: The commit may have been sent. If the connection breaks now, the outcome is unknown.
    may_commit: bool = False


@contextmanager
def append_errors(datastore: Datastore) -> Iterator[Attempt]:
    """Translates the database errors of the `with` block, which runs one append.

    If the connection breaks, it raises `OutcomeUnknown` if `Attempt.may_commit` is set, because the
    events may be stored, and `StorageUnavailable` otherwise. For other temporary errors it raises
    `StorageUnavailable`. It raises all other database errors unchanged.
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
