"""Classifies database errors, and raises `StorageUnavailable` in place of temporary errors."""

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
#: SQLSTATE prefixes of errors that come from the data of a statement: wrong numbers of values, data
#: exceptions, violated constraints, and limits of PostgreSQL such as the size of an index row. Any
#: other error says something about the server: its disk, memory, locks, indexes or settings.
_OF_THE_DATA = ("21", "22", "23", "54")


def is_connection_error(exc: BaseException) -> bool:
    """Tells whether a database error means that the connection to the database is lost.

    The function checks the SQLSTATE of the error. If the error has no SQLSTATE, the function checks
    the Python class of the error. The class alone is not enough, because psycopg also raises
    `OperationalError` for timeouts and for exceeded limits of the server. If the connection is lost
    during a COMMIT, the result of the COMMIT is unknown.
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
    """Tells whether a database error is temporary: the same statement may succeed at a later time.

    Examples are a lost connection, a deadlock, a full disk, and a server that is restarting.
    """
    state = _sqlstate(exc)
    return is_connection_error(exc) or (state is not None and state.startswith(_TEMPORARY))


def is_fault_of_the_database(exc: BaseException) -> bool:
    """Tells whether an error has another cause than the data that the statement has processed.

    Examples are a lost connection, a full disk, missing memory, a timeout, a deadlock, a read-only
    server, an I/O error, a corrupted table or index (`XX001`, `XX002`), and a missing privilege. A
    `MemoryError` or `OSError` of this process is such a fault, too. After the repair of the fault,
    the same data can be processed.
    """
    if isinstance(exc, (MemoryError, OSError)) or is_connection_error(exc):
        return True
    state = _sqlstate(exc)
    return state is not None and not state.startswith(_OF_THE_DATA)


def is_lock_timeout(exc: BaseException) -> bool:
    return _sqlstate(exc) == LOCK_TIMEOUT


def needs_new_connections(exc: BaseException) -> bool:
    """Tells whether the pool should replace its connections after this database error.

    This is the case if a connection is lost, or if the server of the connection only accepts reads.
    A new connection may reach another host of the database URL, which accepts writes.
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
    """Raises `StorageUnavailable` if a temporary database error happens in the `with` block.

    All other errors are raised unchanged. If the error shows a lost connection or a read-only
    server, this function also replaces the connections of `pool`. The methods `reading`, `writing`,
    `fetch_all` and `fetch_one` of `Datastore` already use this function. Other code must use it
    around its database calls.
    """
    try:
        yield
    except DATABASE_ERRORS as exc:
        if needs_new_connections(exc):
            pool.check_pool()
        if is_temporary(exc):
            raise StorageUnavailable() from exc
        raise
