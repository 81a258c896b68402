"""Opens the SQLite file of a replica, with one connection for each thread.

Several threads and processes may use one file; SQLite lets one of them write at a time. Each commit
is flushed to the disk, so a committed change survives a power cut.
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

from foldlog.client.errors import BadArgument, ReplicaClosed, WrongReplica

from .connection import Connection, cured

#: `PRAGMA user_version` of a replica's file
SCHEMA_VERSION = 1
#: `PRAGMA application_id` of a replica's file: "fold" in ASCII
APPLICATION_ID = 0x666F6C64
BUSY_TIMEOUT_SECONDS = 30.0
#: commits are flushed to the disk; simulations set `OFF` to save time
SYNCHRONOUS = "FULL"


class Database:
    """Gives each thread its own connection to the SQLite file of a replica, and runs
    transactions.

    The constructor creates the tables in a new file. It raises `WrongReplica` if the file is
    not a replica, or has another schema version, `FileUnusable` if the file cannot be opened or
    written, and `BadArgument` if the path names no file.
    """

    def __init__(self, path: str | Path):
        self.path = checked_path(path)
        self._is_closed = False
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._opening = threading.Lock()
        self._initialise()

    def _initialise(self) -> None:
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            is_replica = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            is_empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if is_empty:
                # `executescript` would commit first, and another process may open the file now.
                for statement in _statements(
                    (files(__package__) / "schema.sql").read_text("utf-8")
                ):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif not is_replica:
                raise WrongReplica(f"{self.path} is a database of another program")
            elif version != SCHEMA_VERSION:
                raise WrongReplica(f"{self.path} has schema {version}, not {SCHEMA_VERSION}")

    @property
    def connection(self) -> sqlite3.Connection:
        """The SQLite connection of the calling thread. The first access in a thread opens the
        connection. Raises `ReplicaClosed` after `close`.
        """
        if self._is_closed:
            raise ReplicaClosed(f"the replica {self.path} was closed: open it again")
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._connect()
        return found

    def _connect(self) -> sqlite3.Connection:
        try:
            with cured(self.path):
                connection = sqlite3.connect(
                    self.path,
                    timeout=BUSY_TIMEOUT_SECONDS,
                    isolation_level=None,
                    check_same_thread=False,  # `close` runs in another thread
                    factory=Connection,
                )
            connection.path = self.path
            _use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # overwrites erased values
        except WrongReplica:
            raise
        except sqlite3.DatabaseError as exc:
            raise WrongReplica(f"cannot open {self.path}: {exc}") from exc
        with self._opening:
            self._connections.append(connection)
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Runs the `with` block in a write transaction. The block gets the SQLite connection of the
        calling thread.

        The transaction is committed at the end of the block, or rolled back if the block raises an
        exception. If the thread has a transaction open already, the block becomes a part of the
        open transaction.
        """
        connection = self.connection
        if connection.in_transaction:
            yield connection
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # A full disk may have ended the transaction already, or left it open.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def rewrite(self) -> bool:
        """Writes the file anew, without the free space of its pages. SQLite overwrites a deleted
        row (`secure_delete`), but it moves rows when it splits or joins pages, and leaves their
        old copies in the free space.

        Returns `False` if another connection is writing, or the disk has no room for a second
        copy of the file.
        """
        return self._at_once("VACUUM") is not None

    def empty_log(self) -> bool:
        """Empties SQLite's write-ahead log, because this log may still have old versions of changed
        pages, for example with erased values.

        Returns `True` if the log is empty now. Returns `False` if another connection is using the
        log.
        """
        found = self._at_once("PRAGMA wal_checkpoint(TRUNCATE)")
        return found is not None and found[0][0] == 0  # 1 if a reader is in the way

    def _at_once(self, statement: str) -> list[Any] | None:
        """Runs a statement that waits for no other connection, and returns its rows. Returns `None`
        if it fails.
        """
        connection = self.connection
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return None
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}")

    def close(self) -> None:
        self._is_closed = True
        with self._opening:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()


def checked_path(path: str | Path) -> Path:
    """Returns the path of a replica's file. Raises `BadArgument` if the path names no file, such as
    `:memory:`, or names a folder.
    """
    if str(path) in ("", ":memory:") or str(path).startswith("file:"):
        raise BadArgument(
            f"{str(path)!r} names no file, and a replica needs one, for example in a folder of "
            "tempfile.mkdtemp()"
        )
    found = Path(path)
    if found.is_dir():
        raise BadArgument(f"{found} is a folder: add the name of a file")
    return found


def _use_wal(connection: sqlite3.Connection) -> None:
    """Sets the journal mode of the SQLite file to WAL (write-ahead log).

    If another process is opening the file at the same time, retries for up to 30 seconds. The
    retries are needed because SQLite's busy timeout has no effect when the journal mode is changed.
    Raises `sqlite3.OperationalError` if the file stays busy.
    """
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
    """Splits an SQL script into its statements."""
    found, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found
