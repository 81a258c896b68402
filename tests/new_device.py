"""A new device starts as docs/reference/protocol.md says: it loads a snapshot and follows."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from foldlog.domain.events import decode_event
from foldlog.domain.limits import Limits
from foldlog.domain.merge import Key, Record, fold, pack_writes
from foldlog.domain.ports import EventStore, RangeQuery, Snapshot
from foldlog.domain.snapshot import SnapshotHeader, SnapshotPageEnd, snapshot_header, snapshot_line
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import pull_all

from .oracle import canonical


class NewDevice:
    def __init__(self) -> None:
        self.first: SnapshotHeader | None = None
        self.cursor: str | None = None
        self.is_whole = False
        self.records: dict[Key, Record] = {}
        #: the seq up to which each record has its events
        self.at: dict[Key, int] = {}

    def load(self, lines: Iterable[bytes]) -> None:
        """Reads an answer up to its end or break. Drops records after the last closing line."""
        page: list[Record] = []
        for number, line in enumerate(lines):
            if number == 0:
                header = snapshot_header(line)
                self.first = self.first or header
                assert header.log == self.first.log
                assert header.seq >= self.first.seq
                continue
            read = snapshot_line(line)
            if isinstance(read, Record):
                page.append(read)
                continue
            assert isinstance(read, SnapshotPageEnd)
            assert read.at >= self.first.seq
            for record in page:
                key = record.collection, record.id
                assert key not in self.records, "a record comes once"
                self.records[key] = record
                self.at[key] = read.at
            page = []
            self.cursor, self.is_whole = read.cursor, read.cursor is None

    def follow(self, store: EventStore, space: str) -> None:
        """Pulls from the first header's seq. Skips operations that the records contain."""
        assert self.is_whole
        after, mark = self.first.seq, self.first.mark
        while True:
            page = store.range_after(space, RangeQuery(after, 3, mark=mark))
            for event in map(decode_event, page.events):
                news = [op for op in event.ops if event.seq > self.at.get(op.key, 0)]
                fold(self.records, msgspec.structs.replace(event, ops=news))
            after, mark = page.through, page.mark
            if not page.more:
                return

    def states(self) -> dict[Key, str]:
        return states_of(self.records)


def states_of(records: dict[Key, Record]) -> dict[Key, str]:
    """All records and tombstones with the state that later merges need, as comparable text."""
    return {
        key: canonical(
            [
                msgspec.to_builtins(record.fields),
                record.is_deleted,
                record.seq,
                record.last_modified,
                record.created_seq,
                [list(write) for write in pack_writes(record.writes)],
                None if record.deleted is None else list(record.deleted),
            ]
        )
        for key, record in sorted(records.items())
        if record.exists
    }


def fold_of(store: EventStore, space: str) -> dict[Key, str]:
    """The states after a new fold of the whole log."""
    records: dict[Key, Record] = {}
    for state in pull_all(store, space):
        fold(records, decode_event(state))
    return states_of(records)


def lines_of(snapshot: Snapshot) -> Iterator[bytes]:
    """The lines of a snapshot on the wire. Each page is read before its first line."""
    yield msgspec.json.encode(snapshot.header)
    for page in snapshot.pages:
        yield from page.records
        yield msgspec.json.encode(SnapshotPageEnd(page.at, page.mark, page.cursor))


def with_limits(store: Any, limits: Limits) -> Any:
    """The same store with other limits."""
    if isinstance(store, MemoryStore):
        twin = copy.copy(store)
        twin._limits = limits
        return twin
    return type(store)(store.datastore, limits)
