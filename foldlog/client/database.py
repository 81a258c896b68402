"""The replica's file: SQLite, one connection a thread, one transaction a change.

Several threads and processes may use one file; SQLite makes writers take turns. Commits are
flushed to the disk: what `create` returned from is there after a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from .errors import WrongReplica

#: PRAGMA user_version of our files
SCHEMA_VERSION = 1
#: "fold" in ASCII, so that `file` and we can tell our files from others'
APPLICATION_ID = 0x666F6C64
BUSY_TIMEOUT_SECONDS = 30.0
#: commits are flushed to the disk; a simulation that makes thousands need not
SYNCHRONOUS = "FULL"


class Database:
    """Raises `WrongReplica` if the file is not one of ours."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._opening = threading.Lock()
        self._initialise()

    def _initialise(self) -> None:
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            ours = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            is_empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if is_empty:
                # Not executescript, which would commit first: two processes may open at once.
                for statement in _statements(
                    (files(__package__) / "schema.sql").read_text("utf-8")
                ):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif not ours:
                raise WrongReplica(f"{self.path} is a database, but no replica of Foldlog")
            elif version != SCHEMA_VERSION:
                raise WrongReplica(f"{self.path} was made by another version: {version}")

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's own."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._connect()
        return found

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # used by its own thread alone, but closed by `close`
            )
            _use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
        except sqlite3.DatabaseError as exc:
            raise WrongReplica(f"cannot open {self.path}: {exc}") from exc
        with self._opening:
            self._connections.append(connection)
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction for writing, or the one that is under way in this thread."""
        connection = self.connection
        if connection.in_transaction:
            yield connection
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # A full disk ends the transaction by itself, or fails the commit and leaves it open.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def scrub(self) -> bool:
        """Empties the write-ahead log, which holds pages as they were. `False`: somebody reads."""
        connection = self.connection
        connection.execute("PRAGMA busy_timeout = 0")  # whoever reads is not waited for
        try:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:  # somebody else does the same
            return False
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}")
        return not busy

    def close(self) -> None:
        with self._opening:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()


class Meta:
    """The named values of a replica. JSON, so that each keeps its type."""

    def __init__(self, database: Database):
        self._database = database

    def get(self, name: str, default: Any = None) -> Any:
        row = self._database.connection.execute(
            "SELECT value FROM meta WHERE name = ?", (name,)
        ).fetchone()
        return default if row is None else msgspec.json.decode(row[0])

    def set(self, **values: Any) -> None:
        """`None` removes a value. Within the transaction that is under way, if there is one."""
        with self._database.transaction() as db:
            for name, value in values.items():
                if value is None:
                    db.execute("DELETE FROM meta WHERE name = ?", (name,))
                else:
                    db.execute(
                        "INSERT INTO meta (name, value) VALUES (?, ?) "
                        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                        (name, msgspec.json.encode(value).decode()),
                    )

    def add(self, **amounts: int) -> None:
        self.set(**{name: self.get(name, 0) + amount for name, amount in amounts.items()})


def _use_wal(connection: sqlite3.Connection) -> None:
    """Waits for who opens the file at the same moment: SQLite's own busy timeout does not cover
    the change of the journal mode, which fails at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _statements(script: str) -> list[str]:
    found, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found
