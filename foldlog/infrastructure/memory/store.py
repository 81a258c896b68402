"""The event store and the master table in memory: for tests, docs and simulations.

Ships with the code and passes the same contract as PostgreSQL. Everything is decided by the same
`Intake` and the same `fold`; what is left here is a lock and some dictionaries.
"""

from __future__ import annotations

import secrets
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import nsmallest
from threading import Lock

import msgspec

from ...domain.changesets import LocalIds, Push, local_ids
from ...domain.errors import FoldlogError, LogBehind, NoCheckpoint, UnknownRecord, UnknownSpace
from ...domain.events import LogEntry, decode_event, short_form
from ...domain.intake import Intake, check_cursor, keys_to_load
from ...domain.limits import LIMITS, Limits
from ...domain.merge import Conflict, Key, Record, conflict_document, fold, view_of
from ...domain.merkle import Growth, Tile
from ...domain.ports import (
    ConflictsPage,
    EventStore,
    MasterTable,
    ProofTree,
    Range,
    RangeQuery,
    Receipt,
    RecordsPage,
    RecordsQuery,
    Snapshot,
    SnapshotPage,
    SnapshotPlace,
    SpaceId,
    TreeHead,
    decode_cursor,
    encode_cursor,
)
from ...domain.proofs import SALT_BYTES, header_of, leaf_hash, leaf_of
from ...domain.snapshot import SnapshotHeader, snapshot_view


@dataclass
class _Space:
    log: str = field(default_factory=lambda: str(uuid.uuid4()))
    entries: list[LogEntry] = field(default_factory=list)
    by_id: dict[str, LogEntry] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    received_at: int = 0
    records: dict[Key, Record] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    tree: Growth = field(default_factory=Growth)
    tiles: dict[Tile, bytes] = field(default_factory=dict)
    checkpoint: bytes = b""

    @property
    def head(self) -> int:
        return len(self.entries)

    def mark(self, seq: int) -> str:
        return self.entries[seq - 1].mark if 0 < seq <= self.head else ""


class MemoryStore(EventStore, MasterTable, ProofTree):
    """All ports in one, since nothing here is behind anything."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        limits: Limits = LIMITS,
    ):
        self._now_ms = now_ms
        self._limits = limits
        self._lock = Lock()
        self._spaces: dict[SpaceId, _Space] = {}
        self._watchers: dict[SpaceId, list[Callable[[], None]]] = {}

    def submit(self, space: SpaceId, push: Push) -> Future[Receipt]:
        outcome: Future[Receipt] = Future()
        try:
            outcome.set_result(self._push(space, push))
        except Exception as exc:
            outcome.set_exception(exc)
        else:
            for on_growth in list(self._watchers.get(space, ())):
                on_growth()
        return outcome

    def _push(self, space: SpaceId, push: Push) -> Receipt:
        with self._lock:
            here = self._spaces.get(space) or _Space()
            intake = Intake(
                log=here.log,
                head=here.head,
                received_at=max(here.received_at, self._now_ms()),
                known={c.id: here.by_id[c.id].state for c in push.changesets if c.id in here.by_id},
                counters=here.counters,
                records={
                    key: here.records.get(key) or Record(*key) for key in keys_to_load([push])
                },
                marks={} if push.after is None else {push.after: here.mark(push.after)},
                salt=lambda: secrets.token_bytes(SALT_BYTES),
                limits=self._limits,
            )
            verdicts = intake.take(push)
            self._spaces[space] = here  # a space that nothing was stored in is none
            for entry in intake.entries:
                here.entries.append(entry)
                here.by_id[entry.event_id] = entry
                here.received_at = entry.received_at
                here.conflicts += fold(here.records, decode_event(entry.state))
                leaf = leaf_of(header_of(entry.state), entry.ops_hash)
                here.tiles |= here.tree.append([leaf_hash(leaf)])
            here.counters |= intake.counters
            return Receipt(here.log, here.head, verdicts)

    def range_at_hand(self, space: SpaceId, query: RangeQuery) -> Range | None:
        try:
            return self.range_after(space, query)
        except FoldlogError:
            return None

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        watchers = self._watchers.setdefault(space, [])
        watchers.append(on_growth)
        return lambda: watchers.remove(on_growth)

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        here = self._space(space)
        check_cursor(here.log, here.head, query.after, query.mark, here.mark(query.after))
        events: list[bytes] = []
        through, size = query.after, 0
        for entry in here.entries[query.after : query.after + self._limits.page_scan_max]:
            wanted = (
                query.collections is None
                or entry.collections is None
                or not set(query.collections).isdisjoint(entry.collections)
            )
            if wanted:
                size += len(entry.state)
                if len(events) == query.limit or (events and size > self._limits.page_bytes_max):
                    break
                own = entry.kind == "changeset" and entry.device == query.short_for_device
                events.append(short_form(entry.state) if own else entry.state)
            through = entry.seq
        return Range(here.log, here.head, events, through, here.mark(through))

    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        yield from self._space(space).entries[after:through]

    def tree(self, space: SpaceId) -> TreeHead:
        here = self._space(space)
        return TreeHead(here.log, here.tree.size)

    def tiles(self, space: SpaceId, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
        here = self._space(space)
        return {tile: here.tiles[tile] for tile in wanted if tile in here.tiles}

    def checkpoint(self, space: SpaceId) -> bytes:
        found = self._space(space).checkpoint
        if not found:
            raise NoCheckpoint(f"no checkpoint of {space!r} was signed yet")
        return found

    def publish(self, space: SpaceId, log: str, size: int, note: bytes) -> None:
        self._space(space).checkpoint = note

    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        here = self._space(space, query.at_least)
        chosen = [
            record
            for record in here.records.values()
            if record.exists and query.collection in (None, record.collection)
        ]
        if query.changed_after is None:
            after = decode_cursor(query.cursor, str, str) if query.cursor else ("", "")
            live = sorted(
                (r for r in chosen if not r.is_deleted and (r.collection, r.id) > after),
                key=lambda r: (r.collection, r.id),
            )
            page = self._within_bytes(live[: query.limit])
            more = len(live) > len(page)
            cursor = encode_cursor(page[-1].collection, page[-1].id) if more else None
        else:
            seq = decode_cursor(query.cursor, int)[0] if query.cursor else query.changed_after
            changed = sorted(
                (r for r in chosen if r.seq > seq), key=lambda r: (r.seq, r.collection, r.id)
            )
            page = self._within_bytes(changed[: query.limit])
            if page:
                page = changed[: bisect_right(changed, page[-1].seq, key=lambda r: r.seq)]
            more = len(changed) > len(page)
            cursor = encode_cursor(page[-1].seq) if more else None
        return self._page_of(here, page, cursor)

    def record(self, space: SpaceId, key: Key, *, at_least: int = 0) -> RecordsPage:
        here = self._space(space, at_least)
        record = here.records.get(key)
        if record is None or not record.exists:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}, and never was")
        return self._page_of(here, [record], None)

    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        place = SnapshotPlace.of(cursor)
        here = self._space(space, at_least)
        with self._lock:
            place.check(here.log, here.head, here.mark(place.at))
            after = (place.collection, place.id)
            count = sum(r.exists and key > after for key, r in here.records.items())
            header = SnapshotHeader(here.log, here.head, here.mark(here.head), count)
            first = self._snapshot_page(here, place)
        return Snapshot(header, self._snapshot_pages(here, first))

    def _snapshot_pages(self, here: _Space, page: SnapshotPage) -> Iterator[SnapshotPage]:
        yield page
        while page.cursor is not None:
            with self._lock:
                page = self._snapshot_page(here, SnapshotPlace.of(page.cursor))
            yield page

    def _snapshot_page(self, here: _Space, place: SnapshotPlace) -> SnapshotPage:
        limit = self._limits.page_snapshot_records
        after = (place.collection, place.id)
        keys = nsmallest(
            limit + 1, (key for key, r in here.records.items() if r.exists and key > after)
        )
        lines: list[bytes] = []
        size = 0
        for key in keys[:limit]:
            line = msgspec.json.encode(snapshot_view(here.records[key]))
            size += len(line)
            if lines and size > self._limits.page_bytes_max:
                break
            lines.append(line)
        more = len(keys) > len(lines)
        last = None
        if more:
            last = SnapshotPlace(here.log, here.head, here.mark(here.head), *keys[len(lines) - 1])
        return SnapshotPage(lines, here.head, here.mark(here.head), last and last.cursor)

    def conflicts(
        self, space: SpaceId, *, limit: int, cursor: str | None, at_least: int = 0
    ) -> ConflictsPage:
        here = self._space(space, at_least)
        start = decode_cursor(cursor, int)[0] if cursor else 0
        page = here.conflicts[start : start + limit]
        end = start + len(page)
        return ConflictsPage(
            here.log,
            here.head,
            here.head,
            [msgspec.json.encode(conflict_document(conflict)) for conflict in page],
            encode_cursor(end) if end < len(here.conflicts) else None,
        )

    def local_ids(self, space: SpaceId, device: str, *, at_least: int = 0) -> LocalIds:
        ids: LocalIds = {}
        for entry in self._space(space, at_least).entries:
            if entry.device == device:
                for collection, found in local_ids(decode_event(entry.state).ops).items():
                    ids.setdefault(collection, {}).update(found)
        return ids

    def _space(self, space: SpaceId, at_least: int = 0) -> _Space:
        here = self._spaces.get(space)
        if here is None:
            raise UnknownSpace(f"there is no space {space!r}")
        if here.head < at_least:
            raise LogBehind(
                f"at_least {at_least} is beyond the log's head {here.head}", head=here.head
            )
        return here

    def _within_bytes(self, records: list[Record]) -> list[Record]:
        """As many as a page may hold, and one in any case."""
        size = 0
        for number, record in enumerate(records):
            size += len(msgspec.json.encode(record.fields))
            if number and size > self._limits.page_bytes_max:
                return records[:number]
        return records

    def _page_of(self, here: _Space, records: list[Record], cursor: str | None) -> RecordsPage:
        documents = [msgspec.json.encode(view_of(record)) for record in records]
        return RecordsPage(here.log, here.head, here.head, documents, cursor)
