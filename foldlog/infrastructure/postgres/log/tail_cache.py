"""The ends of the logs, in memory: most readers want what came last, or to know that nothing did.

A process keeps of each space that it serves the last events. They are put here by its own appends
and by what it reads; events never change, so what is kept stays true, but it may stop to be the
end. Another process's append is told by a notification, and a lost notification is noticed by a
look at the heads every few seconds; an end that was not confirmed for longer is not answered from.
So what is answered from here may be late by the way of a notification, and never wrong: whatever
cannot be answered for sure (`None`) is asked of the database, refusals of a cursor above all.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from threading import Lock

from foldlog.domain.events import EVENT_SKIPPED, RECORD_ERASED, LogEntry, short_form
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import Range, RangeQuery, SpaceId

#: an end that nobody has confirmed for so long is not answered from
CONFIRMED_SECONDS_MAX = 5.0
TAIL_EVENTS_MAX = 2_000
TAIL_BYTES_MAX = 2 * 2**20
#: of all spaces together; beyond it, what was used least lately goes
BYTES_MAX = 64 * 2**20
#: notifications that are remembered for spaces that are not kept
TOLD_MAX = 1_000
#: what a space costs besides its events
TAIL_BYTES = 2_000
ENTRY_BYTES = 600


@dataclass
class _Tail:
    log: str
    head: int
    mark: str  #: at `head`
    mark_before: str  #: at the event before the first of `entries`
    confirmed_at: float
    entries: deque[LogEntry] = field(default_factory=deque)
    size: int = TAIL_BYTES
    told_head: int = 0  #: by a notification; beyond `head`, this is the end no more

    @property
    def start(self) -> int:
        """The seq before the first of `entries`."""
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
                # What came before it may hold values that are erased now, or what is no JSON.
                self.mark_before = self.entries[-1].mark
                self.entries.clear()
                self.size = TAIL_BYTES
            self.entries.append(entry)
            self.size += len(entry.state) + ENTRY_BYTES
        self.head, self.mark = entries[-1].seq, entries[-1].mark
        gone = None
        while len(self.entries) > TAIL_EVENTS_MAX or (
            self.size > TAIL_BYTES_MAX and len(self.entries) > 1
        ):
            gone = self.entries.popleft()
            self.size -= len(gone.state) + ENTRY_BYTES
        if gone is not None:
            self.mark_before = gone.mark


class LogTailCache:
    """The ends of all spaces that this process knows, for any number of threads."""

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
        #: notifications about spaces that are not kept
        self._told: OrderedDict[SpaceId, int] = OrderedDict()
        self._watchers: dict[SpaceId, list[Callable[[], None]]] = {}

    # Reading

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range | None:
        """A page of the log, if it can be told from here."""
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
            # Copied while nobody adds; what is made of them is made without the lock.
            entries = [tail.entries[n] for n in range(first, len(tail.entries))]
            log, head, head_mark = tail.log, tail.head, tail.mark
        events, last = self._page(entries, query)
        return Range(log, head, events, last.seq, head_mark if last.seq == head else last.mark)

    def _is_current(self, tail: _Tail) -> bool:
        is_confirmed = self._clock() - tail.confirmed_at <= CONFIRMED_SECONDS_MAX
        return is_confirmed and tail.told_head <= tail.head

    def head(self, space: SpaceId) -> int | None:
        """The head of a log, if it can be told from here."""
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
        """The mark of an event of the log that this process last saw."""
        with self._lock:
            tail = self._tails.get(space)
            return None if tail is None else tail.mark_at(seq)

    # What is learnt

    def put(
        self,
        space: SpaceId,
        log: str,
        mark_before: str,
        entries: Sequence[LogEntry],
        *,
        head: int,
        confirmed_at: float,
    ) -> None:
        """Takes the end of a log: `head`, and `entries` up to it, which may be none.

        `confirmed_at` is a moment, by the clock, after which the head may have moved: before it
        was read, or after it was written.
        """
        assert not entries or entries[-1].seq == head
        with self._lock:
            tail = self._tails.get(space)
            if tail is not None and tail.log == log and tail.head >= head:
                tail.confirmed_at = max(tail.confirmed_at, confirmed_at)
                return
            if tail is not None and (tail.log != log or tail.head < head - len(entries)):
                self._drop(space)  # between its end and what comes now something is missing
                if tail.log == log:
                    self._told[space] = tail.told_head
                tail = None
            if tail is None:
                start = head - len(entries)
                tail = _Tail(log, start, mark_before, mark_before, confirmed_at)
                tail.told_head = self._told.pop(space, 0)
                self._tails[space] = tail
                self._size += tail.size
            tail.confirmed_at = max(tail.confirmed_at, confirmed_at)
            new = [entry for entry in entries if entry.seq > tail.head]
            if new:
                before = tail.size
                tail.add(new)
                self._size += tail.size - before
            self._tails.move_to_end(space)
            self._make_room()
            watchers = list(self._watchers.get(space, ()))
        for on_growth in watchers:
            on_growth()

    def tell(self, space: SpaceId, head: int) -> bool:
        """Another process has appended up to `head`. Whether someone waits, and it must be read."""
        with self._lock:
            tail = self._tails.get(space)
            if tail is not None:
                tail.told_head = max(tail.told_head, head)
                if tail.head >= head:
                    return False
            else:
                # Perhaps somebody has just read an older head, and is about to put it here.
                self._told[space] = max(self._told.pop(space, 0), head)
                if len(self._told) > TOLD_MAX:
                    self._told.popitem(last=False)
            return space in self._watchers

    def confirm(self, space: SpaceId, log: str, head: int, mark: str, confirmed_at: float) -> bool:
        """The database was looked at. Whether there is more to read that someone waits for."""
        with self._lock:
            tail = self._tails.get(space)
            if tail is not None:
                if tail.confirmed_at > confirmed_at and tail.head > head:
                    return False  # it has grown since the look
                if tail.log != log or (tail.mark_at(head) or mark) != mark or tail.head > head:
                    self._drop(space)  # the database was restored to an older state, or forked
                elif tail.head == head:
                    tail.confirmed_at = max(tail.confirmed_at, confirmed_at)
                    return False
                else:
                    tail.told_head = max(tail.told_head, head)
            return space in self._watchers

    def forget(self, space: SpaceId) -> None:
        """What is kept of it may be wrong."""
        with self._lock:
            if space in self._tails:
                self._drop(space)

    def clear(self) -> None:
        with self._lock:
            self._tails.clear()
            self._size = 0

    def spaces(self) -> Collection[SpaceId]:
        """Those whose heads must be looked at."""
        with self._lock:
            return {*self._tails, *self._watchers}

    def head_and_mark(self, space: SpaceId) -> tuple[int, str] | None:
        """Where to read on."""
        with self._lock:
            tail = self._tails.get(space)
            return None if tail is None else (tail.head, tail.mark)

    # Waiting

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Has `on_growth` called, from any thread, when the end has moved. Returns the way out."""
        with self._lock:
            self._watchers.setdefault(space, []).append(on_growth)

        def unwatch() -> None:
            with self._lock:
                watchers = self._watchers[space]
                watchers.remove(on_growth)
                if not watchers:
                    del self._watchers[space]

        return unwatch

    def _make_room(self) -> None:
        while self._size > self._bytes_max and len(self._tails) > 1:
            self._drop(next(iter(self._tails)))

    def _drop(self, space: SpaceId) -> None:
        self._size -= self._tails.pop(space).size
