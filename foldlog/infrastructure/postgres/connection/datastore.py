"""Opens the pool of database connections from one URL, and runs statements on its connections.

`Datastore` is a subclass of the eventsourcing library's `PostgresDatastore`. The library provides
the connection pool, and raises its own exceptions in place of psycopg's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from eventsourcing.postgres import PostgresDatastore
from psycopg import Connection, Cursor
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import ConnectionPool

from foldlog.domain.errors import StorageUnavailable

from .deadlines import DeadlineConnection
from .errors import is_connection_error, translated
from .silence import ASK_SECONDS_MAX, Questions

#: Settings of every session, which override the server's defaults. The order of appends depends on
#: READ COMMITTED: each statement must see the transactions that committed before it got the lock.
SESSION_OPTIONS = (
    "-c default_transaction_isolation=read\\ committed -c timezone=UTC "
    # Until statistics cover a new space, the planner treats it as empty and would scan it for each
    # value. Our statements are written for one plan, which uses the indexes.
    "-c plan_cache_mode=force_generic_plan"
)
CONNECT_TIMEOUT_SECONDS = 5
IDLE_SECONDS_MAX = 30.0
RECONNECT_SECONDS_MAX = 5.0
#: Parameters of every connection. With these TCP timeouts a broken network is noticed within
#: seconds. With TCP's defaults it could block the pushes of a space for hours.
CONNECTION: dict[str, Any] = {
    "application_name": "foldlog",
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
#: Overrides a setting of the role or the server, because an acknowledged push must be on the disk.
DURABLE = "SET synchronous_commit = on"
#: The process differs from the one of the connection if a pooler stands between them.
SELECT_SESSION = """
SELECT current_setting('synchronous_commit') AS durable,
       pg_backend_pid() AS pid
"""
#: The timeouts of statements, of locks and of the pool, as shares of `seconds_max`. The server's
#: timeouts end before our deadline: after a timeout of the server it is certain that the statement
#: had no effect, and the connection stays usable.
STATEMENT_SHARE, LOCK_SHARE, POOL_SHARE = 0.8, 0.6, 0.4
#: The longest wait for a connection, in seconds, while the database cannot be reached.
AWAY_SECONDS = 0.1
#: the shortest time between two replacements of all connections, in seconds
RENEW_SECONDS = 1.0
#: A read is repeated on a new connection if its first one turns out dead within this time. Later
#: there may be no time left for a second attempt.
REPEAT_SECONDS = 1.0
#: After this time the server ends a transaction of a stuck client, which may hold a space's lock.
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 60

T = TypeVar("T")


class _JsonAsBytes(Loader):
    """Makes psycopg return JSON columns as the stored bytes, without decoding them.

    The code that needs the values decodes the bytes with msgspec.
    """

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


def _connect_beside(pool: ConnectionPool[Any], other: Connection[Any]) -> Connection[Any]:
    """Opens a connection outside the pool, to the server of one of the pool's connections."""
    assert isinstance(pool.kwargs, dict)
    of_server = {"host": other.info.host, "port": other.info.port}
    if address := other.info.hostaddr:
        of_server["hostaddr"] = address
    given = {**pool.kwargs, **of_server, "connect_timeout": ASK_SECONDS_MAX}
    conn = DeadlineConnection.connect(**given, autocommit=True)
    conn.deadline = time.monotonic() + ASK_SECONDS_MAX
    return conn


class Datastore(PostgresDatastore):
    """A pool of connections to one database. The pool is opened when a connection is first needed.

    `pool_size_max` is the greatest number of connections. Code that takes a connection from the
    pool can use the connection for `seconds_max` seconds. If a statement is still running when this
    time ends, the statement fails with an error that reports a lost connection. The limit works
    even if the database has stopped answering. If the answer to a statement is lost, the statement
    fails seconds after it (`silence`). With `seconds_max=None` the time is unlimited.
    """

    def __init__(self, url: str, *, pool_size_max: int = 10, seconds_max: float | None = None):
        parts = conninfo_to_dict(url)
        super().__init__(
            dbname=str(parts.pop("dbname", "") or ""),
            host=str(parts.pop("host", "") or ""),
            port=str(parts.pop("port", "") or ""),
            user=str(parts.pop("user", "") or ""),
            password=str(parts.pop("password", "") or ""),
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_TIMEOUT_SECONDS,
            pool_size=1,
            max_overflow=pool_size_max - 1,
        )
        # psycopg's pool doubles the pause between its attempts to reconnect, up to this pause.
        self.pool.reconnect_timeout = RECONNECT_SECONDS_MAX
        # The pool closes one idle connection per interval. The default would keep the connections
        # of a burst for hours.
        self.pool.max_idle = IDLE_SECONDS_MAX
        options = f"{parts.pop('options', '') or ''} {SESSION_OPTIONS}".strip()
        self._seconds_max = math.inf if seconds_max is None else seconds_max
        if seconds_max is not None:
            options += f" -c statement_timeout={int(seconds_max * STATEMENT_SHARE * 1000)}"
            options += f" -c lock_timeout={int(seconds_max * LOCK_SHARE * 1000)}"
            self.pool.timeout = min(self.pool.timeout, seconds_max * POOL_SHARE)
        self._pool_seconds = self.pool.timeout
        self._connected_at = self._renewed_at = -math.inf
        assert isinstance(self.pool.kwargs, dict)
        given = {name: value for name, value in self.pool.kwargs.items() if value != ""}
        # `parts` still holds the other parameters of the URL (sslmode, application_name ...).
        self.url = url
        self.pool.kwargs = {**CONNECTION, **given, **parts, "options": options}
        self.pool.connection_class = DeadlineConnection
        self._questions = (
            None if seconds_max is None else Questions(partial(_connect_beside, self.pool))
        )

    def check_pool(self) -> None:
        """Closes all connections of the pool and opens new ones, at most once per second.

        Call this after an error that shows a lost connection or a read-only server, because the
        other connections of the pool probably have the same problem. The method replaces them
        without a test, because a test of a lost connection would wait for a timeout.
        """
        now = time.monotonic()
        if now - self._renewed_at > RENEW_SECONDS:
            self._renewed_at = now
            self.pool.drain()

    @contextmanager
    def get_connection(self) -> Iterator[Connection[Any]]:
        asked_at, is_connected = time.monotonic(), False
        try:
            with super().get_connection() as conn:
                is_connected = True
                self._connected_at = time.monotonic()
                self.pool.timeout = self._pool_seconds
                assert isinstance(conn, DeadlineConnection)
                conn.deadline = self._connected_at + self._seconds_max
                conn.questions = self._questions if conn.is_direct else None
                yield conn
        finally:
            if not is_connected and self._connected_at < asked_at:
                self.pool.timeout = min(self._pool_seconds, AWAY_SECONDS)

    def after_connect_func(self) -> Callable[[Connection[Any]], None]:
        base = super().after_connect_func()

        def after_connect(conn: Connection[Any]) -> None:
            assert isinstance(conn, DeadlineConnection)
            conn.deadline = time.monotonic() + CONNECT_TIMEOUT_SECONDS
            base(conn)
            [found] = conn.execute(SELECT_SESSION).fetchall()
            if found["durable"] == "off":
                conn.execute(DURABLE)
            conn.is_direct = found["pid"] == conn.info.backend_pid
            conn.adapters.register_loader("json", _JsonAsBytes)

        return after_connect

    # The next two methods raise `DATABASE_ERRORS`, for callers that handle these errors.

    @contextmanager
    def rows(self) -> Iterator[Cursor[TupleRow]]:
        """Takes a connection from the pool and yields its cursor in autocommit mode, for reading.

        Database errors are raised as errors of psycopg or of the eventsourcing library
        (`DATABASE_ERRORS`). Use `reading` to get `StorageUnavailable` for temporary errors.
        """
        with self.get_connection() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            yield cursor

    @contextmanager
    def committed(self) -> Iterator[Cursor[TupleRow]]:
        """Yields a cursor in a transaction, which commits at the end of the `with` block.

        Database errors are raised as errors of psycopg or of the eventsourcing library
        (`DATABASE_ERRORS`). Use `writing` to get `StorageUnavailable` for temporary errors.
        """
        with (
            self.get_connection() as conn,
            conn.transaction(),
            conn.cursor(row_factory=tuple_row) as cursor,
        ):
            yield cursor

    # The next methods raise `StorageUnavailable` for an error that a retry may avoid.

    @contextmanager
    def reading(self) -> Iterator[Cursor[TupleRow]]:
        """Takes a connection from the pool and yields its cursor in autocommit mode, for reading.

        If a temporary database error happens, for example a lost connection, the method raises
        `StorageUnavailable`.
        """
        with translated(self), self.rows() as cursor:
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[Cursor[TupleRow]]:
        """Yields a cursor in a transaction, which commits at the end of the `with` block.

        If a temporary database error happens, for example a lost connection, the method raises
        `StorageUnavailable`.
        """
        with translated(self), self.committed() as cursor:
            yield cursor

    def read(self, read: Callable[[Connection[Any]], T]) -> T:
        """Calls `read` with a connection in autocommit mode, and returns its result.

        A connection of the pool can be dead, for example after a restart of the server. If it turns
        out dead within `REPEAT_SECONDS`, the method calls `read` once more, with a new connection.
        So `read` must change nothing in the database. If a temporary database error happens, the
        method raises `StorageUnavailable`.
        """
        began, is_repeated = time.monotonic(), False
        while True:
            is_connected = False
            try:
                with translated(self), self.get_connection() as conn:
                    is_connected = True
                    return read(conn)
            except StorageUnavailable as exc:
                is_dead = is_connected and is_connection_error(exc.__cause__ or exc)
                if not is_dead or is_repeated or time.monotonic() - began > REPEAT_SECONDS:
                    raise
                is_repeated = True

    def fetch_all(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        binary: bool = False,
    ) -> list[TupleRow]:
        """Runs a prepared statement that only reads, and returns all rows as a list of tuples.

        With `binary=True` PostgreSQL sends the columns in binary format, which is faster for long
        byte strings. If a temporary database error happens, the method raises `StorageUnavailable`.
        """

        def read(conn: Connection[Any]) -> list[TupleRow]:
            with conn.cursor(row_factory=tuple_row) as cursor:
                return cursor.execute(statement, params, prepare=True, binary=binary).fetchall()

        return self.read(read)

    def fetch_one(self, statement: str, params: Mapping[str, Any] | None = None) -> TupleRow | None:
        """Runs a prepared statement that only reads, and returns the first row as a tuple.

        Returns `None` if the result is empty. If a temporary database error happens, the method
        raises `StorageUnavailable`.
        """

        def read(conn: Connection[Any]) -> TupleRow | None:
            with conn.cursor(row_factory=tuple_row) as cursor:
                return cursor.execute(statement, params, prepare=True).fetchone()

        return self.read(read)
