"""Records of a fold, more of them than memory holds: what is not at hand is in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from foldlog.domain.merge import Key, Record

#: at hand; a record of five fields takes some 2 KB
RECORDS_KEPT_MAX = 100_000

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
    """As much of a mapping as `fold` needs. The file is SQLite's own, and gone with it."""

    def __init__(self, *, kept_max: int = RECORDS_KEPT_MAX):
        self._kept_max = kept_max
        self._kept: dict[Key, Record] = {}
        self._file = sqlite3.connect("")
        self._file.execute("PRAGMA journal_mode = OFF")  # nobody goes back in it
        self._file.execute(CREATE)
        self._is_spilled = False

    def get(self, key: Key) -> Record | None:
        found = self._kept.get(key)
        if found is None and self._is_spilled:
            row = self._file.execute(SELECT, key).fetchone()
            found = None if row is None else _decode(row[0])
        return found

    def __setitem__(self, key: Key, record: Record) -> None:
        self._kept[key] = record
        if len(self._kept) > self._kept_max:
            self._spill()

    def pop(self, key: Key) -> Record | None:
        """Takes a record out."""
        found = self.get(key)
        self._kept.pop(key, None)
        if self._is_spilled:
            self._file.execute(DELETE, key)
        return found

    def __iter__(self) -> Iterator[Record]:
        """All of them, by collection and id."""
        self._spill()
        return (_decode(encoded) for (encoded,) in self._file.execute(SELECT_ALL))

    def _spill(self) -> None:
        rows = ((*key, _encode(record)) for key, record in self._kept.items())
        self._file.executemany(UPSERT, rows)
        self._kept.clear()
        self._is_spilled = True
