"""Database errors, as the product understands them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import psycopg
from eventsourcing import persistence

from ...domain.errors import StorageUnavailable

DATABASE_ERRORS = (persistence.PersistenceError, psycopg.Error)

#: SQLSTATE classes and codes of a server that cannot serve just now: connection exceptions,
#: operator intervention but for a cancelled query, too many connections, a server that only reads
#: (after a failover). Everything else is the statement's own fault, whatever class of Python's it
#: comes as: psycopg calls a timeout or a full program limit operational, too.
_UNAVAILABLE = ("08", "57P", "53300", "25006")


def is_connection_error(exc: BaseException) -> bool:
    """Whether nothing is wrong with what was asked: the database could not be asked."""
    if not isinstance(exc, DATABASE_ERRORS):
        return False
    cause = exc if isinstance(exc, psycopg.Error) else exc.__cause__
    if isinstance(cause, psycopg.Error) and cause.sqlstate is not None:
        return cause.sqlstate.startswith(_UNAVAILABLE)
    operational = (psycopg.OperationalError, psycopg.InterfaceError)
    mapped = (persistence.OperationalError, persistence.InterfaceError)
    return isinstance(exc, mapped) or isinstance(cause, operational)


class Pool(Protocol):
    def check_pool(self) -> None:
        """Throws away connections that are dead."""


@contextmanager
def translated(pool: Pool) -> Iterator[None]:
    """The database cannot be reached: the caller may try again later."""
    try:
        yield
    except DATABASE_ERRORS as exc:
        if is_connection_error(exc):
            # Where one connection of the pool is dead, the others probably are.
            pool.check_pool()
            raise StorageUnavailable() from exc
        raise
