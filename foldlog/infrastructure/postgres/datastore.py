"""Connections: eventsourcing's datastore with its pool, opened from one URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from eventsourcing.postgres import PostgresDatastore
from psycopg import Connection, Cursor
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, tuple_row

from .errors import DATABASE_ERRORS

#: What every session is set to, whatever the server's defaults are. Append order rests on READ
#: COMMITTED: each statement must see what was committed before it got the space's lock.
SESSION_OPTIONS = (
    "-c default_transaction_isolation=read\\ committed -c timezone=UTC "
    # A space that statistics do not know yet looks empty to the planner, which would then scan all
    # of it for each value; our statements are written for one plan, by their indexes.
    "-c plan_cache_mode=force_generic_plan"
)
CONNECT_TIMEOUT_SECONDS = 5
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
#: A session that a stuck client left open must not hold a space's lock for ever.
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 60


class _JsonAsBytes(Loader):
    """JSON columns come as they are stored; who needs values decodes them with msgspec."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class Datastore(PostgresDatastore):
    """A pool of connections to one database. It connects at the first use, not before."""

    def __init__(self, url: str, *, pool_size_max: int = 10):
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
        options = f"{parts.pop('options', '') or ''} {SESSION_OPTIONS}".strip()
        assert isinstance(self.pool.kwargs, dict)
        given = {name: value for name, value in self.pool.kwargs.items() if value != ""}
        # The rest of the URL (sslmode, application_name ...) counts as much as the host.
        self.url = url
        self.pool.kwargs = {**CONNECTION, **given, **parts, "options": options}

    def check_pool(self) -> None:
        """After a connection broke: the others of the pool may be as dead, so throw those away."""
        with suppress(*DATABASE_ERRORS):
            self.pool.check()

    def register_type_adapters(self) -> None:
        """None to register: rows travel as arrays of columns, not as composite types."""

    def after_connect_func(self) -> Callable[[Connection[Any]], None]:
        base = super().after_connect_func()

        def after_connect(conn: Connection[Any]) -> None:
            base(conn)
            if conn.execute("SHOW synchronous_commit").fetchall()[0]["synchronous_commit"] == "off":
                conn.execute(DURABLE)
            conn.adapters.register_loader("json", _JsonAsBytes)

        return after_connect

    @contextmanager
    def rows(self) -> Iterator[Cursor[TupleRow]]:
        """A cursor outside of any transaction, for reading."""
        with self.get_connection() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            yield cursor

    @contextmanager
    def committed(self) -> Iterator[Cursor[TupleRow]]:
        """A cursor in a transaction that commits at the end."""
        with (
            self.get_connection() as conn,
            conn.transaction(),
            conn.cursor(row_factory=tuple_row) as cursor,
        ):
            yield cursor
