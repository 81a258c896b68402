"""Caches in memory the records that a projection has read or written last."""

from __future__ import annotations

from typing import Any

from psycopg import Cursor

from foldlog.domain.json_reader import decode_value
from foldlog.domain.merge import Key, counted_size
from foldlog.domain.values import LoggedValue
from foldlog.infrastructure.postgres.log.values import Wanted, read_values

from .stored_form import WHOLE_BYTES_MAX, Place, StoredRecord

#: Estimated size of the cached records. They take about three times as much memory.
CACHE_BYTES = 64 * 2**20
#: estimated size of a record in addition to its counted size
RECORD_BYTES = 500


class RecordCache:
    """A cache of records of one generation, in their state after the event with the seq `position`.

    It has two halves. If the newer half exceeds half of the limit in bytes, the older half is
    dropped, and a new half begins. This may happen within an event, so that an event may touch more
    records than fit into memory.
    """

    def __init__(self, position: int, *, bytes_max: int = CACHE_BYTES):
        self.bytes_max = bytes_max
        self.values = LogValues()
        self.reset(position)

    def reset(self, position: int) -> None:
        self.position = position
        self.is_complete = position == 0  #: whether the cache has all records of the generation
        self.bytes_uncommitted = 0
        #: records of the open transaction that were dropped; other connections read them only after
        #: the commit
        self.dropped: set[Key] = set()
        self._uncommitted: set[Key] = set()
        self._bytes = 0
        self._recent: dict[Key, StoredRecord] = {}
        self._older: dict[Key, StoredRecord] = {}

    def find(self, key: Key) -> StoredRecord | None:
        return self._recent.get(key) or self._older.get(key)

    def add_read(self, key: Key, record: StoredRecord) -> None:
        """Adds a record as it was read from the database."""
        self._recent[key] = record
        self._bytes += _memory_of(record)
        if self._bytes > self.bytes_max / 2:
            self._drop_older()

    def add_changed(self, key: Key, record: StoredRecord) -> None:
        """Adds a record that is, or will be, written in the open transaction."""
        self._uncommitted.add(key)
        self.dropped.discard(key)
        self.add_read(key, record)

    def remove(self, key: Key) -> None:
        self._recent.pop(key, None)
        self._older.pop(key, None)
        self.dropped.discard(key)

    def on_commit(self) -> None:
        self.bytes_uncommitted = 0
        self._uncommitted.clear()
        self.dropped.clear()

    def _drop_older(self) -> None:
        gone = self._older.keys() - self._recent.keys()
        self.is_complete = self.is_complete and not gone
        self.dropped |= gone & self._uncommitted
        self._older, self._recent = self._recent, {}
        self._bytes = 0


def _memory_of(record: StoredRecord) -> int:
    """Estimates the size of a record in memory, without its values that are in the log."""
    size = counted_size(record)
    if size > WHOLE_BYTES_MAX:
        size -= sum(v.size for v in record.fields.values() if type(v) is LoggedValue)
    return RECORD_BYTES + size


class LogValues:
    """Reads the large values of cached records from the log. The owner of the cache sets `space`
    and `cursor`, because records stay cached while connections come and go."""

    space: str
    cursor: Cursor[Any]

    def load(self, value: LoggedValue) -> Any:
        wanted = Wanted(value.seq, value.op, value.name)
        return decode_value(read_values(self.cursor, self.space, [wanted], {})[wanted])

    def value_at(self, name: str, place: Place) -> LoggedValue:
        return LoggedValue(self, place[0], place[1], name, place[2])
