"""Defines mappings that keep a bounded amount in memory, and move the rest to a temporary file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from foldlog.domain.merge import Key, Record

#: Values in memory. A record of five fields takes about 2 KB.
IN_MEMORY_MAX = 100_000
#: Bytes in memory, as far as the mapping is told of them.
BYTES_IN_MEMORY_MAX = 64 * 2**20

K = TypeVar("K", bound=tuple[Any, ...])
V = TypeVar("V")


class DiskBacked(Generic[K, V]):
    """A mapping from keys, which are tuples of texts and numbers, to values of one type.

    `key_columns` is the length of each key, and `value_type` a type that msgspec can encode. If
    there are more than `in_memory_max` values, they are moved to a temporary SQLite file. SQLite
    deletes the file when Python frees this object.
    """

    def __init__(
        self, key_columns: int, value_type: type[V], *, in_memory_max: int = IN_MEMORY_MAX
    ):
        columns = [f"k{n}" for n in range(key_columns)]
        names, matches = ", ".join(columns), " AND ".join(f"{name} = ?" for name in columns)
        marks = ", ".join("?" * (key_columns + 1))
        # Columns without a type keep numbers as numbers, so keys are sorted as Python sorts them.
        create = f"CREATE TABLE rows ({names}, value, PRIMARY KEY ({names})) WITHOUT ROWID"
        self._select = f"SELECT value FROM rows WHERE {matches}"
        self._upsert = f"INSERT OR REPLACE INTO rows VALUES ({marks})"
        self._delete = f"DELETE FROM rows WHERE {matches}"
        self._select_all = f"SELECT {names}, value FROM rows ORDER BY {names}"
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(value_type).decode
        self._in_memory_max = in_memory_max
        self._in_memory: dict[K, V] = {}
        self._bytes = 0
        self._file = sqlite3.connect("")
        self._file.execute("PRAGMA journal_mode = OFF")  # the file needs no rollback
        self._file.execute(create)
        self._has_file = False

    def get(self, key: K) -> V | None:
        found = self._in_memory.get(key)
        if found is None and self._has_file:
            row = self._file.execute(self._select, key).fetchone()
            if row is not None:
                self.add_bytes(len(row[0]))  # the caller may store a copy of it
                found = self._decode(row[0])
        return found

    def __setitem__(self, key: K, value: V) -> None:
        self._in_memory[key] = value
        if len(self._in_memory) > self._in_memory_max or self._bytes > BYTES_IN_MEMORY_MAX:
            self._move_to_file()

    def add_bytes(self, count: int) -> None:
        """Tells that the values in memory have grown by about `count` bytes."""
        self._bytes += count

    def pop(self, key: K) -> V | None:
        """Removes a value and returns it. Returns `None` if the key is missing."""
        found = self.get(key)
        self._in_memory.pop(key, None)
        if self._has_file:
            self._file.execute(self._delete, key)
        return found

    def items(self) -> Iterator[tuple[K, V]]:
        """Yields all keys and values, sorted by the key. Texts are sorted by their code points."""
        self._move_to_file()
        for *key, value in self._file.execute(self._select_all):
            yield tuple(key), self._decode(value)  # type: ignore[misc]

    def __iter__(self) -> Iterator[V]:
        """Yields all values, sorted by the key."""
        return (value for _, value in self.items())

    def _move_to_file(self) -> None:
        rows = ((*key, self._encode(value)) for key, value in self._in_memory.items())
        self._file.executemany(self._upsert, rows)
        self._in_memory.clear()
        self._bytes = 0
        self._has_file = True


def disk_backed_seqs() -> DiskBacked[Key, int]:
    """Makes an empty mapping from keys of records to seqs."""
    return DiskBacked(2, int)


class DiskBackedRecords(DiskBacked[Key, Record]):
    """A mapping of record keys to records. It has the methods that `fold` calls when it applies
    an event to the records.
    """

    def __init__(self, *, in_memory_max: int = IN_MEMORY_MAX):
        super().__init__(2, Record, in_memory_max=in_memory_max)
