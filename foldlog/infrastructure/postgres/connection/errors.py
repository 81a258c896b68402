"""Classifies database errors, and translates the temporary ones to `StorageUnavailable`."""

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
#: SQLSTATE prefixes of errors that may pass by themselves: a conflict of transactions, missing
#: resources (a full disk, too many connections), an object in use, a cancelled statement, a system
#: error, a read-only server after a failover. Apart from `_BROKEN`, the server has refused, so the
#: database has stored none of it.
_TEMPORARY = (*_BROKEN, "40", "53", "55", "57", "58", READ_ONLY)


def is_connection_error(exc: BaseException) -> bool:
    """Tells whether the connection is lost, which leaves the outcome of the statement unknown.

    The SQLSTATE decides before the class does, because psycopg also raises `OperationalError` for a
    timeout or an exceeded program limit.
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
    """Tells whether a later attempt may succeed."""
    state = _sqlstate(exc)
    return is_connection_error(exc) or (state is not None and state.startswith(_TEMPORARY))


def is_lock_timeout(exc: BaseException) -> bool:
    return _sqlstate(exc) == LOCK_TIMEOUT


def needs_new_connections(exc: BaseException) -> bool:
    """Tells whether the pool's connections are useless: lost, or to a read-only server.

    A new connection may reach another host of the URL that accepts writes.
    """
    return is_connection_error(exc) or _sqlstate(exc) == READ_ONLY


def _sqlstate(exc: BaseException) -> str | None:
    cause = exc if isinstance(exc, psycopg.Error) else exc.__cause__
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


class Pool(Protocol):
    """The part of a datastore that `translated` needs."""

    def check_pool(self) -> None:
        """Replaces the pool's connections."""


@contextmanager
def translated(pool: Pool) -> Iterator[None]:
    """Raises `StorageUnavailable` for a temporary database error, and all others unchanged.

    `Datastore.reading` and its relatives include this. Use it for a block of several connections.
    """
    try:
        yield
    except DATABASE_ERRORS as exc:
        if needs_new_connections(exc):
            pool.check_pool()
        if is_temporary(exc):
            raise StorageUnavailable() from exc
        raise
