"""Database errors of an append."""

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
    """The progress of one append."""

    #: A commit may have been sent, so a broken connection leaves its outcome open.
    may_commit: bool = False


@contextmanager
def append_errors(datastore: Datastore) -> Iterator[Attempt]:
    """Raises `StorageUnavailable` or `OutcomeUnknown` for database errors that a retry may avoid.

    Other database errors pass unchanged.
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
