"""Reads the records that a projection is about to change, a bounded number of bytes in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Key
from foldlog.infrastructure.postgres.connection.arrays import text_array
from foldlog.infrastructure.postgres.projection import Generation

from .assembly import read_parts
from .record_cache import RecordCache
from .record_rows import lacks_values, record_of, select_wanted
from .stored_form import StoredRecord, unpack

SELECT_RECORDS = select_wanted("%(space)s", "%(generation)s")

#: records that are read together
AHEAD_RECORDS = 5_000


class RecordReader:
    """Reads the records of one part of a page, from the cache if it has them.

    `upcoming` are the keys that the part needs, in order. Records are read in advance as far as
    they fit into a quarter of the cache. `flush` must send all rows that wait to be written. It is
    called before a record of the open transaction is read again.
    """

    def __init__(
        self, to: Generation[RecordCache], upcoming: Iterable[Key], flush: Callable[[], None]
    ):
        self._to = to
        self._cache = to.cache
        to.cache.values.space, to.cache.values.cursor = to.space, to.reader
        self._flush = flush
        self._upcoming = iter(dict.fromkeys(upcoming))
        self._absent: set[Key] = set()

    def read(self, key: Key) -> StoredRecord:
        """Returns a record as it is before the next event, or an empty one if it is new."""
        found = self._cache.find(key)
        if found is not None:
            return found
        if key in self._cache.dropped:
            self._flush()
            return self._read_alone(key)
        if self._cache.is_complete or key in self._absent:
            return StoredRecord(*key)
        self._read_ahead(key)
        found = self._cache.find(key)
        if found is not None:
            return found
        return StoredRecord(*key) if key in self._absent else self._read_alone(key)

    def _read_ahead(self, key: Key) -> None:
        further = islice(self._upcoming, AHEAD_RECORDS)
        keys = [key, *(k for k in further if k != key and self._is_unread(k))]
        bytes_max = self._cache.bytes_max // 4
        rows = self._records(self._to.reader, keys, bytes_max)
        self._absent |= set(keys) - {(row[0], row[1]) for row in rows}
        found = [
            record_of(row, self._cache.values.value_at) for row in rows if not lacks_values(row)
        ]
        left = bytes_max
        chosen = []
        for record, parts in found:
            left -= sum(size for _, size in parts)
            if not parts or left >= 0:
                chosen.append((record, parts))
        self._complete(self._to.reader, chosen)
        for record, _ in chosen:
            self._cache.add_read((record.collection, record.id), record)

    def _is_unread(self, key: Key) -> bool:
        return self._cache.find(key) is None and key not in self._cache.dropped

    def _read_alone(self, key: Key) -> StoredRecord:
        rows = self._records(self._to.cursor, [key], INTEGER_MAX)
        if not rows:
            return StoredRecord(*key)
        found = [record_of(row, self._cache.values.value_at) for row in rows]
        self._complete(self._to.cursor, found)
        return found[0][0]

    def _records(self, cursor: Any, keys: Sequence[Key], bytes_max: int) -> list[Any]:
        params = {
            **self._to.params,
            "collections": text_array(collection for collection, _ in keys),
            "ids": text_array(id for _, id in keys),
            "bytes_max": bytes_max,
        }
        return list(cursor.execute(SELECT_RECORDS, params, prepare=True).fetchall())

    def _complete(
        self, cursor: Any, records: Sequence[tuple[StoredRecord, list[tuple[int, int]]]]
    ) -> None:
        """Reads the parts of the records that are stored in parts."""
        wanted = (
            (record.collection, record.id, seq) for record, parts in records for seq, _ in parts
        )
        rows = read_parts(cursor, self._to.space, self._to.number, wanted)
        for record, parts in records:
            if parts:
                found = [rows.pop((record.collection, record.id, seq)) for seq, _ in parts]
                unpack(record, found, self._cache.values.value_at)
