"""Database errors, as the product understands them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import psycopg
from eventsourcing import persistence

from ...domain.errors import StorageUnavailable

DATABASE_ERRORS = (persistence.PersistenceError, psycopg.Error)

#: SQLSTATE classes of a connection that is gone: connection exceptions, and a server that shuts
#: down or crashed. Only these leave open what became of a COMMIT.
_BROKEN = ("08", "57P")
#: ... and of what may pass by itself: a conflict of transactions, no resources (a full disk, too
#: many connections), an object in use, a cancelled statement, trouble with the system, a server
#: that only reads after a failover. The server has said no, so nothing is stored.
_TEMPORARY = (*_BROKEN, "40", "53", "55", "57", "58", "25006")


def is_connection_error(exc: BaseException) -> bool:
    """Whether the connection is gone, so that nobody can tell what became of what was sent.

    By SQLSTATE, not by class: psycopg calls a timeout or a full program limit operational, too.
    """
    if not isinstance(exc, DATABASE_ERRORS):
        return False
    state = _sqlstate(exc)
    if state is not None:
        return state.startswith(_BROKEN)
    broken = (
        *(persistence.OperationalError, persistence.InterfaceError),
        *(psycopg.OperationalError, psycopg.InterfaceError),
    )
    return isinstance(exc, broken) or isinstance(exc.__cause__, broken)


def is_temporary(exc: BaseException) -> bool:
    """Whether the same may go well a little later."""
    state = _sqlstate(exc)
    return is_connection_error(exc) or (state is not None and state.startswith(_TEMPORARY))


def _sqlstate(exc: BaseException) -> str | None:
    cause = exc if isinstance(exc, psycopg.Error) else exc.__cause__
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


class Pool(Protocol):
    def check_pool(self) -> None:
        """Throws away connections that are dead."""


@contextmanager
def translated(pool: Pool) -> Iterator[None]:
    """The database cannot serve just now: the caller may try again later."""
    try:
        yield
    except DATABASE_ERRORS as exc:
        if is_connection_error(exc):
            # Where one connection of the pool is dead, the others probably are.
            pool.check_pool()
        if is_temporary(exc):
            raise StorageUnavailable() from exc
        raise
