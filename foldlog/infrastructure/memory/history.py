"""Answers queries about the history of records, from a log in memory.

Each query computes the records anew from the events of the log.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

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

from .spaces import MemorySpaces, Space

_encode = msgspec.json.encode


class Step(msgspec.Struct):
    """The effect of one event on the records.

    `head` is the header of the event. `touched` maps the key of each record that the event contains
    to a pair: the record before the event, and the record after the event. `conflicts` is a list of
    the conflicts that the event has caused.
    """

    head: EventHead
    touched: dict[Key, tuple[Record, Record]]
    conflicts: list[Conflict]


def steps(entries: Iterable[LogEntry]) -> Iterator[Step]:
    """Applies the entries one after another to an empty set of records.

    It yields the effect of each entry on the records.
    """
    records: dict[Key, Record] = {}
    for entry in entries:
        event = decode_event(entry.state)
        keys = event.keys
        before = {key: records.get(key) or Record(*key) for key in keys}
        conflicts = fold(records, event)
        touched = {key: (before[key], records[key]) for key in keys}
        yield Step(head_of(entry.state), touched, conflicts)


class MemoryHistory(MemorySpaces, History):
    """Answers queries about earlier states of records, which it computes from the log in memory."""

    def position(self, space: SpaceId) -> Projected:
        return Projected(self._space(space).head, is_halted=False)

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
            position
            for position in ((key[0], seq, key[1]) for key, seq in made.items())
            if position > after
            and query.collection in (None, position[0])
            and records[position[0], position[2]].is_live
        )
        documents = (
            (position, _encode(view_of(records[position[0], position[2]]))) for position in live
        )
        page = self._within(documents, query.limit)
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
        documents: list[tuple[int, bytes]] = []
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
                documents.append((step.head.seq, _encode(view)))
        if not documents:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        if query.order == "newest":
            documents.reverse()
        if after is not None:
            sign = 1 if query.order == "oldest" else -1
            documents = [(seq, view) for seq, view in documents if sign * seq > sign * after]
        page = self._within(documents, query.limit)
        cursor = encode_cursor(documents[len(page) - 1][0]) if len(documents) > len(page) else None
        return HistoryPage(here.log, here.head, here.head, page, cursor)

    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        here = self._space(space, query.at_least)
        if query.cursor:
            at = DiffCursor(*decode_cursor(query.cursor, int, int, int, str, str))
            check_cursor_moment(query.start, at.start)
            check_cursor_moment(query.to, at.to)
        else:
            start = _seq_of(here, query.start)
            at = DiffCursor(start, _seq_of(here, query.to), start + 1)
        check_moments(at.start, at.to)
        _check_head(here, at.to)
        before: dict[Key, Record] = {}
        after: dict[Key, tuple[int, Record]] = {}
        for step in steps(here.entries[: at.to]):
            for key, (_, record) in step.touched.items():
                if step.head.seq <= at.start:
                    before[key] = record
                elif query.collection in (None, key[0]):
                    after[key] = step.head.seq, record
        documents = []
        for key, (seq, record) in sorted(after.items(), key=lambda item: (item[1][0], item[0])):
            was = before.get(key) or Record(*key)
            different = difference(
                view_of(was) if was.exists else None, view_of(record) if record.exists else None
            )
            if different and (seq, *key) > (at.seq, at.collection, at.id):
                documents.append(((seq, *key), _encode(different)))
        page = self._within(documents, query.limit)
        cursor = None
        if len(documents) > len(page):
            cursor = encode_cursor(at.start, at.to, *documents[len(page) - 1][0])
        return DiffPage(here.log, here.head, here.head, at.start, at.to, page, cursor)

    def _within(self, documents: Iterable[tuple[Any, bytes]], limit: int) -> list[bytes]:
        """Returns as many of the documents as fit into one page, beginning with the first.

        A page contains at most `limit` documents and `page_bytes_max` bytes. The first document is
        always included, even if it is larger.
        """
        page: list[bytes] = []
        size = 0
        for _, document in islice(documents, limit):
            size += len(document)
            if page and size > self._limits.page_bytes_max:
                break
            page.append(document)
        return page


def _check_head(here: Space, seq: int) -> None:
    """Raises `LogBehind` if `seq` is higher than the head, because the log lacks this event."""
    if seq > here.head:
        raise LogBehind(f"seq {seq} is beyond the log's head {here.head}", head=here.head)


def _seq_of(here: Space, moment: Point) -> int:
    """Converts a moment, which is a seq or a time, to a seq.

    A seq is returned unchanged. A time is converted to the seq of the last event that was received
    until then, or to 0 if all events are later. If `moment.seq` and `moment.time` are both `None`,
    the head of the log is returned.
    """
    if moment.seq is not None:
        return moment.seq
    if moment.time is None:
        return here.head
    return bisect_right(here.entries, moment.time, key=lambda entry: entry.received_at)
