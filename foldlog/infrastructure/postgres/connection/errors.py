"""Classifies database errors, and raises `StorageUnavailable` in place of temporary ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import psycopg
from eventsourcing import persistence

from foldlog.domain.errors import StorageUnavailable

DATABASE_ERRORS = (persistence.PersistenceError, psycopg.Error)

#: SQLSTATE prefixes of a lost connection: connection exceptions, a server that shuts down or
#: crashed, a session or transaction that the server ended. Only these leave the outcome of a COMMIT
#: unknown.
_BROKEN = ("08", "57P", "25P03", "25P04")
#: the SQLSTATE of a server that only accepts reads, such as a standby
READ_ONLY = "25006"
LOCK_TIMEOUT = "55P03"
#: SQLSTATE prefixes of errors that a retry may avoid: a conflict of transactions, missing resources
#: (a full disk, too many connections), an object in use, a cancelled statement, a system error, a
#: read-only server after a failover. Except for `_BROKEN`, the server has refused the statement, so
#: the database has stored none of its changes.
_TEMPORARY = (*_BROKEN, "40", "53", "55", "57", "58", READ_ONLY)


def is_connection_error(exc: BaseException) -> bool:
    """Tells whether an error means that the connection to the database is lost.

    If the connection is lost during a COMMIT, the transaction may or may not be stored. The
    decision uses the error's SQLSTATE, if there is one. The Python class of the error is not
    enough, because psycopg also raises `OperationalError` for timeouts and for exceeded limits of
    the server.
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
    """Tells whether the same statement may succeed if it is tried again later.

    Examples are a lost connection, a deadlock, a full disk, and a server that is restarting.
    """
    state = _sqlstate(exc)
    return is_connection_error(exc) or (state is not None and state.startswith(_TEMPORARY))


def is_lock_timeout(exc: BaseException) -> bool:
    return _sqlstate(exc) == LOCK_TIMEOUT


def needs_new_connections(exc: BaseException) -> bool:
    """Tells whether an error means that the pool must replace its connections.

    This is the case if connections are lost, or lead to a server that only accepts reads. A new
    connection may reach another host of the database URL, which accepts writes.
    """
    return is_connection_error(exc) or _sqlstate(exc) == READ_ONLY


def _sqlstate(exc: BaseException) -> str | None:
    cause = exc if isinstance(exc, psycopg.Error) else exc.__cause__
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


class Pool(Protocol):
    """The interface of a connection pool that the function `translated` uses."""

    def check_pool(self) -> None:
        """Replaces all connections of the pool with new ones."""


@contextmanager
def translated(pool: Pool) -> Iterator[None]:
    """Raises `StorageUnavailable` in place of a temporary database error inside the `with` block.

    All other errors are raised unchanged. After a lost connection or a read-only server, the pool's
    connections are replaced as well. `Datastore.reading`, `writing`, `fetch_all` and `fetch_one`
    already do all this. Use this function around code that borrows connections in another way.
    """
    try:
        yield
    except DATABASE_ERRORS as exc:
        if needs_new_connections(exc):
            pool.check_pool()
        if is_temporary(exc):
            raise StorageUnavailable() from exc
        raise
