"""Caches the newest events of each log in memory, because most readers ask for these events.

Each process has its own cache, and adds the events that it appends or reads. Stored events do not
change, so cached events stay correct. But the cached head becomes outdated when another process
appends events. A notification then tells this process about the append. Notifications can get lost,
so the follower thread also reads the heads from the database every few seconds.

The cache answers queries about a space only if the cached head was confirmed in the last
`CONFIRMED_SECONDS_MAX` seconds. The answer has the correct events, but it can lack new events whose
notification is still on its way. If the cache cannot answer a query, or if the query's cursor is
invalid, the cache returns `None`. The caller then reads from the database, and this read rejects an
invalid cursor.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from foldlog.domain.events import EVENT_SKIPPED, RECORD_ERASED, LogEntry, short_form
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import Range, RangeQuery, SpaceId

#: the cache answers from an end only if it was confirmed in the last seconds
CONFIRMED_SECONDS_MAX = 5.0
TAIL_EVENTS_MAX = 2_000
TAIL_BYTES_MAX = 2 * 2**20
#: the limit for all spaces together; the least recently used ones are evicted
BYTES_MAX = 64 * 2**20
#: how many announced heads of other spaces are remembered
ANNOUNCED_MAX = 1_000
#: estimated memory of a space, and of an event in addition to its bytes
TAIL_BYTES = 2_000
ENTRY_BYTES = 600


class LogEnd(NamedTuple):
    """The head and the last events of a log, just read from the database or written to it."""

    log: str
    head: int
    #: the last events up to `head`; may be empty
    entries: Sequence[LogEntry]
    #: the mark of the event before `entries`; without entries, the mark at `head`
    mark_before: str
    #: a time of the monotonic clock at which `head` was still the last seq: taken before the head
    #: was read, or after it was written
    confirmed_at: float


@dataclass
class _Tail:
    log: str
    head: int
    mark: str  #: at `head`
    mark_before: str  #: at the event before the first of `entries`
    confirmed_at: float
    entries: deque[LogEntry] = field(default_factory=deque)
    size: int = TAIL_BYTES
    announced_head: int = 0  #: by a notification; the tail is stale if this is beyond `head`

    @property
    def start(self) -> int:
        """Returns the seq of the event directly before the first cached event.

        If no events are cached, the returned seq equals `head`.
        """
        return self.head - len(self.entries)

    def mark_at(self, seq: int) -> str | None:
        if seq == self.head:
            return self.mark
        if seq == self.start:
            return self.mark_before
        return self.entries[seq - self.start - 1].mark if self.start < seq < self.head else None

    def add(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            if entry.kind in (RECORD_ERASED, EVENT_SKIPPED) and self.entries:
                # Older cached events may hold erased values, or an unreadable event.
                self.mark_before = self.entries[-1].mark
                self.entries.clear()
                self.size = TAIL_BYTES
            self.entries.append(entry)
            self.size += len(entry.state) + ENTRY_BYTES
        self.head, self.mark = entries[-1].seq, entries[-1].mark
        evicted = None
        while len(self.entries) > TAIL_EVENTS_MAX or (
            self.size > TAIL_BYTES_MAX and len(self.entries) > 1
        ):
            evicted = self.entries.popleft()
            self.size -= len(evicted.state) + ENTRY_BYTES
        if evicted is not None:
            self.mark_before = evicted.mark


class LogTailCache:
    """A cache of the newest events of many logs. All methods can be called from any thread."""

    def __init__(
        self,
        *,
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
        bytes_max: int = BYTES_MAX,
    ):
        self._limits = limits
        self._clock = clock
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._tails: OrderedDict[SpaceId, _Tail] = OrderedDict()
        self._size = 0
        #: announced heads of spaces that are not cached
        self._announced: OrderedDict[SpaceId, int] = OrderedDict()
        self._watchers: dict[SpaceId, list[Callable[[], None]]] = {}

    # Reading

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range | None:
        """Returns a page of the cached events after the seq `query.after`, as a `Range`.

        Returns `None` if the caller must read the page from the database.
        """
        with self._lock:
            tail = self._tails.get(space)
            if (
                tail is None
                or not tail.start <= query.after <= tail.head
                or not self._is_current(tail)
            ):
                return None
            self._tails.move_to_end(space)
            if query.mark is not None and query.mark != tail.mark_at(query.after):
                return None
            if query.after == tail.head:
                return Range(tail.log, tail.head, [], tail.head, tail.mark)
            first = query.after - tail.start
            # Copied under the lock. The page is built after the lock is released.
            entries = [tail.entries[n] for n in range(first, len(tail.entries))]
            log, head, head_mark = tail.log, tail.head, tail.mark
        events, last = self._page(entries, query)
        return Range(log, head, events, last.seq, head_mark if last.seq == head else last.mark)

    def _is_current(self, tail: _Tail) -> bool:
        is_confirmed = self._clock() - tail.confirmed_at <= CONFIRMED_SECONDS_MAX
        return is_confirmed and tail.announced_head <= tail.head

    def head(self, space: SpaceId) -> int | None:
        """Returns the head of a log, or `None` if the caller must read it from the database."""
        with self._lock:
            tail = self._tails.get(space)
            return tail.head if tail is not None and self._is_current(tail) else None

    def _page(self, entries: list[LogEntry], query: RangeQuery) -> tuple[list[bytes], LogEntry]:
        events: list[bytes] = []
        size, bytes_max = 0, query.page_bytes_max(self._limits)
        last: LogEntry | None = None
        wanted = None if query.collections is None else set(query.collections)
        for entry in entries:
            if wanted is None or entry.collections is None or wanted & set(entry.collections):
                size += len(entry.state)
                if len(events) == query.limit or (events and size > bytes_max):
                    break
                own = entry.kind == "changeset" and entry.device == query.short_for_device
                events.append(short_form(entry.state) if own else entry.state)
            last = entry
        assert last is not None
        return events, last

    def mark_at(self, space: SpaceId, seq: int) -> str | None:
        """Returns the mark of the log at `seq`, or `None` if the cache does not know this mark."""
        with self._lock:
            tail = self._tails.get(space)
            return None if tail is None else tail.mark_at(seq)

    # Updating

    def update(self, space: SpaceId, end: LogEnd) -> None:
        """Adds the newest events of a log, `end.entries`, to the cache.

        `end` was just read from the database or written to the database. If the cache already has
        these events, the method only updates the time at which the cached head was confirmed.
        Otherwise it adds the events, and then calls the functions that `watch` has registered for
        the space.

        In three cases the method first removes the cached events of the space: if the cached log
        has another id, if events between the cached head and `end.entries` are missing, or if the
        cached log has another history, because the database was restored from a backup.
        """
        log, head, entries, mark_before, confirmed_at = end
        start = head - len(entries)
        assert not entries or (entries[0].seq, entries[-1].seq) == (start + 1, head)
        with self._lock:
            tail = self._tails.get(space)
            if tail is not None and tail.log == log and tail.head >= head:
                if confirmed_at <= tail.confirmed_at:
                    return  # the log has grown after the read
                if (tail.head, tail.mark) == (head, entries[-1].mark if entries else mark_before):
                    tail.confirmed_at = confirmed_at
                    return
            if tail is not None and not self._continues(tail, end):
                self._drop(space)
                if tail.log == log:
                    self._announced[space] = tail.announced_head
                tail = None
            if tail is None:
                tail = _Tail(log, start, mark_before, mark_before, confirmed_at)
                tail.announced_head = self._announced.pop(space, 0)
                self._tails[space] = tail
                self._size += tail.size
            tail.confirmed_at = max(tail.confirmed_at, confirmed_at)
            new = [entry for entry in entries if entry.seq > tail.head]
            if new:
                before = tail.size
                tail.add(new)
                self._size += tail.size - before
            self._tails.move_to_end(space)
            self._evict()
            watchers = list(self._watchers.get(space, ()))
        for on_growth in watchers:
            on_growth()

    @staticmethod
    def _continues(tail: _Tail, end: LogEnd) -> bool:
        """Tells whether `end` adds to a cached log without a hole and without another history."""
        start = end.head - len(end.entries)
        is_next = start <= tail.head < end.head
        return tail.log == end.log and is_next and tail.mark_at(start) in (None, end.mark_before)

    def announce(self, space: SpaceId, head: int) -> bool:
        """Tells the cache that another process has appended events to a space, up to `head`.

        Until these events are added to the cache, the cache returns `None` for queries about this
        space. The method returns `True` if the events are not cached and a function is registered
        for the space with `watch`. The caller should then read the events into the cache.
        """
        with self._lock:
            tail = self._tails.get(space)
            if tail is not None:
                tail.announced_head = max(tail.announced_head, head)
                if tail.head >= head:
                    return False
            else:
                # Another thread may have read an older head, and may be about to add it.
                self._announced[space] = max(self._announced.pop(space, 0), head)
                if len(self._announced) > ANNOUNCED_MAX:
                    self._announced.popitem(last=False)
            return space in self._watchers

    def confirm(self, space: SpaceId, end: LogEnd) -> bool:
        """Compares the cached head of a log with `end`, which was just read from the database.

        `end.entries` must be empty. If the log in the database is shorter than the cached log, or
        has another id or mark, the method removes the space from the cache. If both logs are equal,
        the method updates the time at which the cached head was confirmed. If the log in the
        database is longer, the cache returns `None` for queries about the space until the new
        events are added.

        Returns `True` if the cache lacks events and a function is registered for the space with
        `watch`. The caller should then read the events into the cache.
        """
        log, head, _, mark, confirmed_at = end
        with self._lock:
            tail = self._tails.get(space)
            if tail is not None:
                if tail.confirmed_at > confirmed_at and tail.head > head:
                    return False  # the log has grown after the read
                if tail.log != log or (tail.mark_at(head) or mark) != mark or tail.head > head:
                    self._drop(space)  # the database was restored from a backup, or the log forked
                elif tail.head == head:
                    tail.confirmed_at = max(tail.confirmed_at, confirmed_at)
                    return False
                else:
                    tail.announced_head = max(tail.announced_head, head)
            return space in self._watchers

    def forget(self, space: SpaceId) -> None:
        """Removes a space and its events from the cache."""
        with self._lock:
            if space in self._tails:
                self._drop(space)

    def clear(self) -> None:
        with self._lock:
            self._tails.clear()
            self._size = 0

    def spaces(self) -> Collection[SpaceId]:
        """Returns a set of the spaces that are in the cache or that readers watch.

        A reader watches a space if it has registered a function with `watch`. The follower thread
        regularly reads the heads of these spaces from the database.
        """
        with self._lock:
            return {*self._tails, *self._watchers}

    def head_and_mark(self, space: SpaceId) -> tuple[int, str] | None:
        """Returns (head, mark) of a cached log: the seq and the mark of its last event.

        Returns `None` if the cache does not contain the space. The log in the database may already
        have newer events.
        """
        with self._lock:
            tail = self._tails.get(space)
            return None if tail is None else (tail.head, tail.mark)

    # Waiting

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Registers a function that is called when new events of a space are added to the cache.

        The function must be safe to call from any thread. `watch` returns another function. Call
        the returned function to end the registration.
        """
        with self._lock:
            self._watchers.setdefault(space, []).append(on_growth)

        def unwatch() -> None:
            with self._lock:
                watchers = self._watchers[space]
                watchers.remove(on_growth)
                if not watchers:
                    del self._watchers[space]

        return unwatch

    def wake(self, space: SpaceId) -> None:
        """Calls the registered functions of a space, so that its readers use the database."""
        with self._lock:
            watchers = list(self._watchers.get(space, ()))
        for on_growth in watchers:
            on_growth()

    def _evict(self) -> None:
        while self._size > self._bytes_max and len(self._tails) > 1:
            self._drop(next(iter(self._tails)))

    def _drop(self, space: SpaceId) -> None:
        self._size -= self._tails.pop(space).size
