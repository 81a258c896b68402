"""Caches in memory the records that a projection has read or written in its last batches."""

from __future__ import annotations

from foldlog.domain.merge import Key, Record

#: Size of the records' rows. The records themselves take about three times as much memory.
CACHE_BYTES = 64 * 2**20


class RecordCache:
    """A cache of records of one generation, in their state after the event with the seq `position`.

    The cache always keeps records that were written in the open transaction, because other
    connections cannot read them before the commit. It keeps committed records until it reaches its
    limit of bytes. It then removes the records of the oldest batches first.
    """

    def __init__(self, position: int, *, bytes_max: int = CACHE_BYTES):
        self._bytes_max = bytes_max
        self.reset(position)

    def reset(self, position: int) -> None:
        self.position = position
        self.is_complete = position == 0  #: whether the cache has all records of the generation
        self.bytes_uncommitted = 0
        self._bytes = 0
        self._recent: dict[Key, Record] = {}
        self._older: dict[Key, Record] = {}

    def find(self, keys: set[Key]) -> dict[Key, Record]:
        found = {}
        for key in keys:
            record = self._recent.get(key) or self._older.get(key)
            if record is not None:
                found[key] = record
        return found

    def add(self, records: dict[Key, Record], size: int, position: int) -> None:
        """Adds records to the cache, and sets the cache's position to `position`.

        `size` is the size in bytes of the rows that were written for these records.
        """
        self._recent |= records
        self.bytes_uncommitted += size
        self.position = position

    def remove(self, key: Key) -> None:
        self._recent.pop(key, None)
        self._older.pop(key, None)

    def on_commit(self) -> None:
        """Removes the older half of the cache if the newer half exceeds half of the limit in bytes.

        After the removal, the newer half becomes the older half, and a new, empty half begins. The
        caller must call this method after each commit. After a commit every connection can read the
        written records from the database, so the cache may remove them.
        """
        self._bytes += self.bytes_uncommitted
        self.bytes_uncommitted = 0
        if self._bytes > self._bytes_max / 2:
            self.is_complete = self.is_complete and self._older.keys() <= self._recent.keys()
            self._older, self._recent = self._recent, {}
            self._bytes = 0
