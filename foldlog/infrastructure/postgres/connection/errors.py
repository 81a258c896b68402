"""Database errors, as the product understands them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import psycopg
from eventsourcing import persistence

from foldlog.domain.errors import StorageUnavailable

DATABASE_ERRORS = (persistence.PersistenceError, psycopg.Error)

#: SQLSTATE classes of a connection that is gone: connection exceptions, a server that shuts down
#: or crashed, a session or transaction that it ended. Only these leave open what became of a
#: COMMIT.
_BROKEN = ("08", "57P", "25P03", "25P04")
#: what a server says that only reads, since it is a standby or was told so
READ_ONLY = "25006"
LOCK_TIMEOUT = "55P03"
#: ... and of what may pass by itself: a conflict of transactions, no resources (a full disk, too
#: many connections), an object in use, a cancelled statement, trouble with the system, a server
#: that only reads after a failover. The server has said no, so nothing is stored.
_TEMPORARY = (*_BROKEN, "40", "53", "55", "57", "58", READ_ONLY)


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


def is_lock_timeout(exc: BaseException) -> bool:
    return _sqlstate(exc) == LOCK_TIMEOUT


def needs_new_connections(exc: BaseException) -> bool:
    """Whether the pool's connections are of no use: dead, or to a server that only reads. Another
    one of the URL's hosts may take writes."""
    return is_connection_error(exc) or _sqlstate(exc) == READ_ONLY


def _sqlstate(exc: BaseException) -> str | None:
    cause = exc if isinstance(exc, psycopg.Error) else exc.__cause__
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


class Pool(Protocol):
    def check_pool(self) -> None:
        """Has the connections made anew."""


@contextmanager
def translated(pool: Pool) -> Iterator[None]:
    """The database cannot serve just now: the caller may try again later."""
    try:
        yield
    except DATABASE_ERRORS as exc:
        if needs_new_connections(exc):
            pool.check_pool()
        if is_temporary(exc):
            raise StorageUnavailable() from exc
        raise
