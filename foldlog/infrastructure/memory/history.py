"""What was, in memory: the log folded again for every question, and nothing else kept."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec

from foldlog.domain.errors import LogBehind, UnknownRecord
from foldlog.domain.events import LogEntry, decode_event
from foldlog.domain.history import (
    DiffCursor,
    EventHead,
    Point,
    check_cursor_moment,
    check_moments,
    difference,
    head_of,
    version_view,
)
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Conflict, Key, Record, conflict_document, fold, view_of
from foldlog.domain.ports import (
    AsOfPage,
    AsOfQuery,
    DiffPage,
    DiffQuery,
    History,
    HistoryPage,
    HistoryQuery,
    Projected,
    SpaceId,
    decode_cursor,
    encode_cursor,
)

_encode = msgspec.json.encode


class Log(Protocol):
    """What of a space is asked here."""

    @property
    def log(self) -> str: ...
    @property
    def head(self) -> int: ...
    @property
    def entries(self) -> Sequence[LogEntry]: ...


class Step(msgspec.Struct):
    """An event, the records that it touched as they were and as they are, and what lost."""

    head: EventHead
    touched: dict[Key, tuple[Record, Record]]
    conflicts: list[Conflict]


def steps(entries: Iterable[LogEntry]) -> Iterator[Step]:
    records: dict[Key, Record] = {}
    for entry in entries:
        event = decode_event(entry.state)
        keys = event.keys
        before = {key: records.get(key) or Record(*key) for key in keys}
        conflicts = fold(records, event)
        touched = {key: (before[key], records[key]) for key in keys}
        yield Step(head_of(entry.state), touched, conflicts)


class MemoryHistory(History):
    _limits: Limits

    @abstractmethod
    def _space(self, space: SpaceId, at_least: int = 0) -> Log:
        """Raises `UnknownSpace`, `LogBehind`."""

    def position(self, space: SpaceId) -> Projected:
        return Projected(self._space(space).head, is_stopped=False)

    def as_of(self, space: SpaceId, query: AsOfQuery) -> AsOfPage:
        here = self._space(space, query.at_least)
        after: tuple[str, int, str] = ("", 0, "")
        if query.cursor:
            begun, collection, seq, id = decode_cursor(query.cursor, int, str, int, str)
            as_of, after = check_cursor_moment(query.moment, begun), (collection, seq, id)
        else:
            as_of = _seq_of(here, query.moment)
        _check_head(here, as_of)
        made: dict[Key, int] = {}
        records: dict[Key, Record] = {}
        for step in steps(here.entries[:as_of]):
            for key, (_, record) in step.touched.items():
                if record.exists:
                    made.setdefault(key, step.head.seq)
                    records[key] = record
        live = sorted(
            place
            for place in ((key[0], seq, key[1]) for key, seq in made.items())
            if place > after
            and query.collection in (None, place[0])
            and records[place[0], place[2]].is_live
        )
        told = ((place, _encode(view_of(records[place[0], place[2]]))) for place in live)
        page = self._within(told, query.limit)
        cursor = encode_cursor(as_of, *live[len(page) - 1]) if len(live) > len(page) else None
        return AsOfPage(here.log, here.head, here.head, page, cursor, as_of)

    def record_as_of(
        self, space: SpaceId, key: Key, moment: Point, *, at_least: int = 0
    ) -> AsOfPage:
        here = self._space(space, at_least)
        as_of = _seq_of(here, moment)
        _check_head(here, as_of)
        found = Record(*key)
        for step in steps(here.entries[:as_of]):
            _, found = step.touched.get(key, (found, found))
        if not found.exists:
            raise UnknownRecord(f"there was no record {key[0]}/{key[1]} at {as_of}, nor before")
        documents = [_encode(view_of(found))]
        return AsOfPage(here.log, here.head, here.head, documents, None, as_of)

    def history(self, space: SpaceId, key: Key, query: HistoryQuery) -> HistoryPage:
        here = self._space(space, query.at_least)
        after = decode_cursor(query.cursor, int)[0] if query.cursor else None
        told: list[tuple[int, bytes]] = []
        for step in steps(here.entries):
            before, record = step.touched.get(key, (None, None))
            if before is not None and record is not None and record.exists:
                lost = [
                    _encode(conflict_document(c))
                    for c in step.conflicts
                    if (c.collection, c.id) == key
                ]
                view = version_view(
                    step.head, record.is_deleted, before.fields, record.fields, lost
                )
                told.append((step.head.seq, _encode(view)))
        if not told:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        if query.order == "newest":
            told.reverse()
        if after is not None:
            sign = 1 if query.order == "oldest" else -1
            told = [(seq, view) for seq, view in told if sign * seq > sign * after]
        page = self._within(told, query.limit)
        cursor = encode_cursor(told[len(page) - 1][0]) if len(told) > len(page) else None
        return HistoryPage(here.log, here.head, here.head, page, cursor)

    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        here = self._space(space, query.at_least)
        if query.cursor:
            place = DiffCursor(*decode_cursor(query.cursor, int, int, int, str, str))
            check_cursor_moment(query.start, place.start)
            check_cursor_moment(query.to, place.to)
        else:
            start = _seq_of(here, query.start)
            place = DiffCursor(start, _seq_of(here, query.to), start + 1)
        check_moments(place.start, place.to)
        _check_head(here, place.to)
        before: dict[Key, Record] = {}
        after: dict[Key, tuple[int, Record]] = {}
        for step in steps(here.entries[: place.to]):
            for key, (_, record) in step.touched.items():
                if step.head.seq <= place.start:
                    before[key] = record
                elif query.collection in (None, key[0]):
                    after[key] = step.head.seq, record
        told = []
        for key, (seq, record) in sorted(after.items(), key=lambda item: (item[1][0], item[0])):
            was = before.get(key) or Record(*key)
            different = difference(
                view_of(was) if was.exists else None, view_of(record) if record.exists else None
            )
            if different and (seq, *key) > (place.seq, place.collection, place.id):
                told.append(((seq, *key), _encode(different)))
        page = self._within(told, query.limit)
        cursor = None
        if len(told) > len(page):
            cursor = encode_cursor(place.start, place.to, *told[len(page) - 1][0])
        return DiffPage(here.log, here.head, here.head, place.start, place.to, page, cursor)

    def _within(self, told: Iterable[tuple[Any, bytes]], limit: int) -> list[bytes]:
        """As many of these documents as a page may hold, and one in any case."""
        page: list[bytes] = []
        size = 0
        for _, document in islice(told, limit):
            size += len(document)
            if page and size > self._limits.page_bytes_max:
                break
            page.append(document)
        return page


def _check_head(here: Log, seq: int) -> None:
    if seq > here.head:
        raise LogBehind(f"seq {seq} is beyond the log's head {here.head}", head=here.head)


def _seq_of(here: Log, moment: Point) -> int:
    if moment.seq is not None:
        return moment.seq
    if moment.time is None:
        return here.head
    return bisect_right(here.entries, moment.time, key=lambda entry: entry.received_at)
