"""Connections: eventsourcing's datastore with its pool, opened from one URL."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eventsourcing.postgres import PostgresDatastore
from psycopg import Connection, Cursor
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, tuple_row

from .deadlines import DeadlineConnection
from .errors import translated

#: What every session is set to, whatever the server's defaults are. Append order rests on READ
#: COMMITTED: each statement must see what was committed before it got the space's lock.
SESSION_OPTIONS = (
    "-c default_transaction_isolation=read\\ committed -c timezone=UTC "
    # A space that statistics do not know yet looks empty to the planner, which would then scan all
    # of it for each value; our statements are written for one plan, by their indexes.
    "-c plan_cache_mode=force_generic_plan"
)
CONNECT_TIMEOUT_SECONDS = 5
IDLE_SECONDS_MAX = 30.0
RECONNECT_SECONDS_MAX = 5.0
#: A network that fell silent must not hold a space's queue until TCP gives up, which takes hours.
CONNECTION: dict[str, Any] = {
    "application_name": "foldlog",
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
#: What was acknowledged must be on the disk, whatever a role or a server is set to.
DURABLE = "SET synchronous_commit = on"
#: Shares of the time that a connection may be borrowed for. The server gives up first, because its
#: refusal is certain: nothing was stored, and the connection stays.
STATEMENT_SHARE, LOCK_SHARE, POOL_SHARE = 0.8, 0.6, 0.4
#: so long somebody waits for a connection while nobody gets one: the pool tries meanwhile by itself
AWAY_SECONDS = 0.1
#: between two times that all connections are made anew
RENEW_SECONDS = 1.0
#: A session that a stuck client left open must not hold a space's lock for ever.
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 60


class _JsonAsBytes(Loader):
    """JSON columns come as they are stored; who needs values decodes them with msgspec."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class Datastore(PostgresDatastore):
    """A pool of connections to one database. It connects at the first use, not before.

    With `seconds_max` none is borrowed for longer, whatever becomes of the database meanwhile.
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
            originator_id_type="text",
        )
        # psycopg's pool doubles the pause between attempts, up to this: no longer than it takes
        # somebody to notice that the database is back.
        self.pool.reconnect_timeout = RECONNECT_SECONDS_MAX
        # Else what a burst needed would be kept for hours: one is given back each time.
        self.pool.max_idle = IDLE_SECONDS_MAX
        options = f"{parts.pop('options', '') or ''} {SESSION_OPTIONS}".strip()
        self._seconds_max = math.inf if seconds_max is None else seconds_max
        if seconds_max is not None:
            options += f" -c statement_timeout={int(seconds_max * STATEMENT_SHARE * 1000)}"
            options += f" -c lock_timeout={int(seconds_max * LOCK_SHARE * 1000)}"
            self.pool.timeout = min(self.pool.timeout, seconds_max * POOL_SHARE)
        self._pool_seconds = self.pool.timeout
        self._served_at = self._renewed_at = -math.inf
        assert isinstance(self.pool.kwargs, dict)
        given = {name: value for name, value in self.pool.kwargs.items() if value != ""}
        # The rest of the URL (sslmode, application_name ...) counts as much as the host.
        self.url = url
        self.pool.kwargs = {**CONNECTION, **given, **parts, "options": options}
        self.pool.connection_class = DeadlineConnection

    def check_pool(self) -> None:
        """After a connection broke: the others may be as dead, or lead to a server that only
        reads now. So they are made anew; asking each of them would be to wait for the dead."""
        now = time.monotonic()
        if now - self._renewed_at > RENEW_SECONDS:
            self._renewed_at = now
            self.pool.drain()

    @contextmanager
    def get_connection(self) -> Iterator[Connection[Any]]:
        asked_at, is_served = time.monotonic(), False
        try:
            with super().get_connection() as conn:
                is_served = True
                self._served_at = time.monotonic()
                self.pool.timeout = self._pool_seconds
                assert isinstance(conn, DeadlineConnection)
                conn.until = self._served_at + self._seconds_max
                yield conn
        finally:
            if not is_served and self._served_at < asked_at:
                self.pool.timeout = min(self._pool_seconds, AWAY_SECONDS)

    def register_type_adapters(self) -> None:
        """None to register: rows travel as arrays of columns, not as composite types."""

    def after_connect_func(self) -> Callable[[Connection[Any]], None]:
        base = super().after_connect_func()

        def after_connect(conn: Connection[Any]) -> None:
            assert isinstance(conn, DeadlineConnection)
            conn.until = time.monotonic() + CONNECT_TIMEOUT_SECONDS
            base(conn)
            if conn.execute("SHOW synchronous_commit").fetchall()[0]["synchronous_commit"] == "off":
                conn.execute(DURABLE)
            conn.adapters.register_loader("json", _JsonAsBytes)

        return after_connect

    # These two raise the database's own errors, for callers that handle them.

    @contextmanager
    def rows(self) -> Iterator[Cursor[TupleRow]]:
        """Yields a cursor in autocommit mode, for reading."""
        with self.get_connection() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            yield cursor

    @contextmanager
    def committed(self) -> Iterator[Cursor[TupleRow]]:
        """Yields a cursor in a transaction that commits at the end of the block."""
        with (
            self.get_connection() as conn,
            conn.transaction(),
            conn.cursor(row_factory=tuple_row) as cursor,
        ):
            yield cursor

    # These raise `StorageUnavailable` for an error that a later attempt may avoid.

    @contextmanager
    def reading(self) -> Iterator[Cursor[TupleRow]]:
        """Yields a cursor in autocommit mode, for reading."""
        with translated(self), self.rows() as cursor:
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[Cursor[TupleRow]]:
        """Yields a cursor in a transaction that commits at the end of the block."""
        with translated(self), self.committed() as cursor:
            yield cursor

    def fetch_all(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        binary: bool = False,
    ) -> list[TupleRow]:
        """Returns all rows of a prepared statement, in binary format if `binary` is set."""
        with self.reading() as cursor:
            return cursor.execute(statement, params, prepare=True, binary=binary).fetchall()

    def fetch_one(self, statement: str, params: Mapping[str, Any] | None = None) -> TupleRow | None:
        """Returns the first row of a prepared statement, or `None`."""
        with self.reading() as cursor:
            return cursor.execute(statement, params, prepare=True).fetchone()
