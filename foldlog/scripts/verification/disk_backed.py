"""Defines a mapping of records that keeps up to 100,000 records in memory, and moves them to a
temporary file if there are more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from foldlog.domain.merge import Key, Record

#: Records in memory. A record of five fields takes about 2 KB.
RECORDS_IN_MEMORY_MAX = 100_000

CREATE = """
CREATE TABLE records (collection TEXT, id TEXT, record BLOB, PRIMARY KEY (collection, id))
WITHOUT ROWID
"""
SELECT = "SELECT record FROM records WHERE collection = ? AND id = ?"
UPSERT = "INSERT OR REPLACE INTO records VALUES (?, ?, ?)"
DELETE = "DELETE FROM records WHERE collection = ? AND id = ?"
SELECT_ALL = "SELECT record FROM records ORDER BY collection, id"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class DiskBackedRecords:
    """A mapping of record keys to records. It has the methods that `fold` calls when it applies
    an event to the records.

    If there are more than `in_memory_max` records, they are moved to a temporary SQLite file.
    SQLite deletes the file when Python frees this object.
    """

    def __init__(self, *, in_memory_max: int = RECORDS_IN_MEMORY_MAX):
        self._in_memory_max = in_memory_max
        self._in_memory: dict[Key, Record] = {}
        self._file = sqlite3.connect("")
        self._file.execute("PRAGMA journal_mode = OFF")  # the file needs no rollback
        self._file.execute(CREATE)
        self._has_file = False

    def get(self, key: Key) -> Record | None:
        found = self._in_memory.get(key)
        if found is None and self._has_file:
            row = self._file.execute(SELECT, key).fetchone()
            found = None if row is None else _decode(row[0])
        return found

    def __setitem__(self, key: Key, record: Record) -> None:
        self._in_memory[key] = record
        if len(self._in_memory) > self._in_memory_max:
            self._move_to_file()

    def pop(self, key: Key) -> Record | None:
        """Removes a record and returns it. Returns `None` if the key is missing."""
        found = self.get(key)
        self._in_memory.pop(key, None)
        if self._has_file:
            self._file.execute(DELETE, key)
        return found

    def __iter__(self) -> Iterator[Record]:
        """Yields all records, sorted by collection and id."""
        self._move_to_file()
        return (_decode(encoded) for (encoded,) in self._file.execute(SELECT_ALL))

    def _move_to_file(self) -> None:
        rows = ((*key, _encode(record)) for key, record in self._in_memory.items())
        self._file.executemany(UPSERT, rows)
        self._in_memory.clear()
        self._has_file = True
