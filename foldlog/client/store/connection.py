"""A connection to the SQLite file of a replica, which says what to do when the file fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldlog.client.errors import FileUnusable

#: what to do, by SQLite's primary result code
_CURES = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space, and repeat the call",
    sqlite3.SQLITE_READONLY: "the file, or its folder, is read-only: make both writable",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: its folder must exist and be writable",
    sqlite3.SQLITE_PERM: "the file cannot be opened: the user of the app needs permission",
    sqlite3.SQLITE_BUSY: "another program has locked the file for too long: repeat the call",
    sqlite3.SQLITE_LOCKED: "another program has locked the file for too long: repeat the call",
    sqlite3.SQLITE_IOERR: "the disk failed, or is full: check the disk, and repeat the call",
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged: save `Replica.unsent` if it still works, delete the file, and open "
        "a new replica, which loads the records from the server"
    ),
}


@contextmanager
def cured(path: Path) -> Iterator[None]:
    """Converts an error of SQLite about the file, its disk or its folder to `FileUnusable`.

    Other errors of SQLite are faults of the library, and pass as they are.
    """
    try:
        yield
    except sqlite3.DatabaseError as exc:
        code = getattr(exc, "sqlite_errorcode", None)
        cure = None if code is None else _CURES.get(code & 0xFF)
        if code is None or cure is None or isinstance(exc, FileUnusable):
            raise
        error = FileUnusable(f"{path}: {cure} ({exc})")
        error.sqlite_errorcode = code
        error.sqlite_errorname = exc.sqlite_errorname
        raise error from exc


class Connection(sqlite3.Connection):
    """A connection whose statements raise `FileUnusable` when the file fails."""

    path: Path

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        with cured(self.path):
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        with cured(self.path):
            return super().executemany(sql, parameters)
