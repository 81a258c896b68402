"""The event store and the master table in memory: for tests, docs and simulations.

Ships with the code and passes the same contract as PostgreSQL. Everything is decided by the same
`PushDecider` and the same `fold`; what is left here is a lock and some dictionaries.
"""

from __future__ import annotations

import secrets
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import nsmallest
from threading import Lock

import msgspec

from foldlog.domain.access import Device
from foldlog.domain.changesets import LocalIds, Push, local_ids
from foldlog.domain.collections import (
    Check,
    Definition,
    Outcome,
    Plan,
    Proposal,
    RecordSchema,
    Version,
    check_collection_count,
    definition_entry,
    definition_of,
)
from foldlog.domain.erasure import (
    Erasable,
    Erased,
    ErasureScan,
    Selection,
    erased_entry,
    record_erased_entry,
)
from foldlog.domain.errors import (
    FoldlogError,
    LogBehind,
    NoCheckpoint,
    NotStopped,
    UnknownCollection,
    UnknownRecord,
    UnknownSpace,
)
from foldlog.domain.events import Envelope, LogEntry, decode_event, short_form
from foldlog.domain.history import head_of
from foldlog.domain.ledger import ALL_CONFLICTS, ConflictsFilter, read_ledger, render_ledger
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import Conflict, Key, Record, conflict_document, fold, view_of
from foldlog.domain.merkle import Tile, TreeBuilder
from foldlog.domain.names import check_reason
from foldlog.domain.ports import (
    ConflictsPage,
    EventStore,
    LocalIdsPage,
    MasterTable,
    Progress,
    ProofTree,
    Range,
    RangeQuery,
    Receipt,
    RecordsPage,
    RecordsQuery,
    Snapshot,
    SnapshotCursor,
    SnapshotPage,
    SpaceId,
    TreeHead,
    decode_cursor,
    encode_cursor,
)
from foldlog.domain.proofs import SALT_BYTES, leaf_hash
from foldlog.domain.push_decider import PushDecider, check_cursor, keys_to_load, keys_unseen
from foldlog.domain.skipping import Skipped
from foldlog.domain.snapshot import SnapshotHeader, snapshot_view

from .history import MemoryHistory
from .registry import MemoryRegistry, noted


@dataclass
class _Space:
    log: str = field(default_factory=lambda: str(uuid.uuid4()))
    entries: list[LogEntry] = field(default_factory=list)
    by_id: dict[str, LogEntry] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)  #: registered, or revoked
    received_at: int = 0
    records: dict[Key, Record] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    schemas: dict[str, RecordSchema] = field(default_factory=dict)
    erasures: dict[Key, int] = field(default_factory=dict)
    tree: TreeBuilder = field(default_factory=TreeBuilder)
    tiles: dict[Tile, bytes] = field(default_factory=dict)
    checkpoint: bytes = b""

    @property
    def head(self) -> int:
        return len(self.entries)

    def append(self, entry: LogEntry) -> None:
        self.entries.append(entry)
        self.by_id[entry.event_id] = entry
        self.received_at = entry.received_at
        self.devices = noted(self.devices, [entry])
        self.conflicts += fold(self.records, decode_event(entry.state))
        self.tiles |= self.tree.append([leaf_hash(entry.leaf)])

    def mark(self, seq: int) -> str:
        return self.entries[seq - 1].mark if 0 < seq <= self.head else ""


class MemoryStore(EventStore, MemoryHistory, MemoryRegistry, MasterTable, ProofTree):
    """All ports in one, since nothing here is behind anything."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        limits: Limits = LIMITS,
    ):
        MemoryRegistry.__init__(self)
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
            intake = PushDecider(
                log=here.log,
                head=here.head,
                received_at=max(here.received_at, self._now_ms()),
                known={c.id: here.by_id[c.id].state for c in push.changesets if c.id in here.by_id},
                counters=here.counters,
                revoked={d.device for d in here.devices.values() if d.revoked_at is not None},
                records={
                    key: here.records.get(key) or Record(*key)
                    for key in keys_to_load([push], here.schemas)
                },
                marks={} if push.after is None else {push.after: here.mark(push.after)},
                salt=lambda: secrets.token_bytes(SALT_BYTES),
                erasures={
                    key: here.erasures[key]
                    for key in keys_unseen([push], here.head)
                    if key in here.erasures
                },
                limits=self._limits,
                schemas=here.schemas,
            )
            verdicts = intake.take(push)
            self._spaces[space] = here  # a space that nothing was stored in is none
            for entry in intake.entries:
                here.append(entry)
            here.counters |= intake.counters
            return Receipt(here.log, here.head, verdicts)

    def collections(self, space: SpaceId) -> list[Version]:
        definitions = self._space(space).definitions
        return [_version(definitions[name][-1]) for name in sorted(definitions)]

    def collection(
        self, space: SpaceId, collection: str, version: int | None = None
    ) -> tuple[Definition, list[Version]]:
        versions = self._space(space).definitions.get(collection, [])
        for definition in reversed(versions):
            if version in (None, definition.version):
                return definition, list(map(_version, versions))
        raise UnknownCollection(f"the collection {collection!r} is not defined like that")

    def define(
        self,
        space: SpaceId,
        collection: str,
        wanted: Proposal,
        *,
        seconds_max: float | None = None,
        report: Callable[[int], None] = lambda checked: None,
    ) -> Outcome:
        with self._lock:
            here = self._spaces.get(space) or _Space()
            versions = here.definitions.get(collection, [])
            plan = Plan(collection, wanted, versions[-1] if versions else None)
            plan.check_version()
            plan.check_additive()
            if plan.is_known:
                return plan.outcome(versions[-1].seq, None)
            check = None
            if plan.needs_check:
                check = self._look(here, plan)
                report(check.checked)
                plan.check_stored(check)
            if wanted.is_dry_run:
                return plan.outcome(None, check)
            check_collection_count(here.definitions, collection, self._limits)
            entry = definition_entry(self._envelope(here), plan.body())
            self._spaces[space] = here
            here.append(entry)
            definition = definition_of(decode_event(entry.state))
            here.definitions[collection] = [*versions, definition]
            here.schemas[collection] = RecordSchema.of(definition.schema)
        for on_growth in list(self._watchers.get(space, ())):
            on_growth()
        return plan.outcome(entry.seq, check)

    def _look(self, here: _Space, plan: Plan) -> Check:
        schema, check = RecordSchema(plan.wanted.schema), Check()
        for key in sorted(here.records):
            record = here.records[key]
            if record.collection == plan.collection and record.is_live:
                check.add(record.id, schema.violation(record.fields))
        return check

    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        try:
            return self.range_after(space, query)
        except FoldlogError:
            return None

    def cached_head(self, space: SpaceId) -> int | None:
        here = self._spaces.get(space)
        return None if here is None else here.head

    def _envelope(self, here: _Space) -> Envelope:
        """The metadata of the space's next event."""
        received_at = max(here.received_at, self._now_ms())
        return Envelope(
            here.head + 1, str(uuid.uuid4()), received_at, secrets.token_bytes(SALT_BYTES)
        )

    def _append_service_event(
        self, space: SpaceId, decide: Callable[[Envelope], LogEntry | None]
    ) -> None:
        with self._lock:
            here = self._spaces.get(space) or _Space()
            entry = decide(self._envelope(here))
            if entry is None:
                return
            self._spaces[space] = here
            here.append(entry)
        for on_growth in list(self._watchers.get(space, ())):
            on_growth()

    def _known_space(self, space: SpaceId) -> _Space | None:
        return self._spaces.get(space)

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        watchers = self._watchers.setdefault(space, [])
        watchers.append(on_growth)
        return lambda: watchers.remove(on_growth)

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        here = self._space(space)
        check_cursor(here.log, here.head, query.after, query.mark, here.mark(query.after))
        events: list[bytes] = []
        through, size = query.after, 0
        bytes_max = query.page_bytes_max(self._limits)
        for entry in here.entries[query.after : query.after + self._limits.page_scan_max]:
            wanted = (
                query.collections is None
                or entry.collections is None
                or not set(query.collections).isdisjoint(entry.collections)
            )
            if wanted:
                size += len(entry.state)
                if len(events) == query.limit or (events and size > bytes_max):
                    break
                own = entry.kind == "changeset" and entry.device == query.short_for_device
                events.append(short_form(entry.state) if own else entry.state)
            through = entry.seq
        return Range(here.log, here.head, events, through, here.mark(through))

    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        check_reason(reason, by)
        self._space(space)
        # What cannot be folded is not stored here, so there is nothing to step over.
        raise NotStopped(f"the master table of {space!r} does not stand still at seq {seq}")

    def skipped(self, space: SpaceId) -> frozenset[int]:
        return frozenset()

    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        yield from self._space(space).entries[after:through]

    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        wanted.check()
        here = self._space(space)
        with self._lock:
            found = {
                op.key
                for entry in here.entries
                for op in decode_event(entry.state).ops
                if wanted.names(op)
            }
            return self._traces(here, {*wanted.keys, *found}, report).erasable()

    def erase(
        self,
        space: SpaceId,
        keys: Collection[Key],
        *,
        reason: str,
        by: str | None = None,
        tidies: bool = False,
        report: Progress = lambda done, of: None,
    ) -> list[Erased]:
        check_reason(reason, by)
        here = self._space(space)
        with self._lock:
            traces = self._traces(here, keys, report)
            erased = [self._erase(here, key, traces.seqs[key], reason, by) for key in sorted(keys)]
        for on_growth in list(self._watchers.get(space, ())):
            on_growth()
        return erased

    def _traces(self, here: _Space, keys: Collection[Key], report: Progress) -> ErasureScan:
        traces = ErasureScan(keys)
        for entry in here.entries:
            traces.note(entry.seq, entry.state)
        traces.check_all_named()
        report(here.head, here.head)
        return traces

    def _erase(
        self, here: _Space, key: Key, seqs: list[int], reason: str, by: str | None
    ) -> Erased:
        if seqs:
            for seq in seqs:
                entry = erased_entry(here.entries[seq - 1], {key})
                here.entries[seq - 1] = here.by_id[entry.event_id] = entry
            entry = record_erased_entry(self._envelope(here), key, reason=reason, by=by)
            here.append(entry)
            here.erasures[key] = entry.seq
            here.conflicts = [c for c in here.conflicts if (c.collection, c.id) != key]
        return Erased(*key, here.erasures[key], len(seqs))

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
        here = self._space(space)
        if here.log == log:
            here.checkpoint = note

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
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        return self._page_of(here, [record], None)

    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        place = SnapshotCursor.of(cursor)
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
                page = self._snapshot_page(here, SnapshotCursor.of(page.cursor))
            yield page

    def _snapshot_page(self, here: _Space, place: SnapshotCursor) -> SnapshotPage:
        limit = self._limits.page_snapshot_records
        after = (place.collection, place.id)
        keys = nsmallest(
            limit + 1, (key for key, r in here.records.items() if r.exists and key > after)
        )
        lines: list[bytes] = []
        size = 0
        for key in keys[:limit]:
            line = msgspec.json.encode(snapshot_view(here.records[key], here.erasures.get(key)))
            size += len(line)
            if lines and size > self._limits.page_bytes_max:
                break
            lines.append(line)
        more = len(keys) > len(lines)
        last = None
        if more:
            last = SnapshotCursor(here.log, here.head, here.mark(here.head), *keys[len(lines) - 1])
        return SnapshotPage(lines, here.head, here.mark(here.head), last and last.cursor)

    def conflicts(
        self,
        space: SpaceId,
        *,
        limit: int,
        cursor: str | None,
        at_least: int = 0,
        wanted: ConflictsFilter = ALL_CONFLICTS,
    ) -> ConflictsPage:
        here = self._space(space, at_least)
        start = decode_cursor(cursor, int)[0] if cursor else 0
        chosen = [
            (number, conflict)
            for number, conflict in enumerate(here.conflicts[start:], start + 1)
            if _is_wanted(conflict, wanted)
        ]
        page = chosen[:limit]
        entries = read_ledger(msgspec.json.encode(conflict_document(c)) for _, c in page)
        seqs = {seq for entry in entries for seq in entry.seqs}
        heads = {seq: head_of(here.entries[seq - 1].state) for seq in seqs}
        return ConflictsPage(
            here.log,
            here.head,
            here.head,
            render_ledger(entries, heads, base=here.head),
            encode_cursor(page[-1][0]) if len(chosen) > len(page) else None,
        )

    def local_ids(
        self, space: SpaceId, device: str, *, limit: int, cursor: str | None, at_least: int = 0
    ) -> LocalIdsPage:
        after = decode_cursor(cursor, str, str) if cursor else ("", "")
        found = {
            (collection, local_id): id
            for entry in self._space(space, at_least).entries
            if entry.device == device
            for collection, ids in local_ids(decode_event(entry.state).ops).items()
            for local_id, id in ids.items()
        }
        rest = sorted(place for place in found if place > after)
        page: LocalIds = {}
        for collection, local_id in rest[:limit]:
            page.setdefault(collection, {})[local_id] = found[collection, local_id]
        return LocalIdsPage(page, encode_cursor(*rest[limit - 1]) if len(rest) > limit else None)

    def _space(self, space: SpaceId, at_least: int = 0) -> _Space:
        here = self._spaces.get(space)
        if here is None:
            raise UnknownSpace(space)
        if here.head < at_least:
            raise LogBehind(f"seq {at_least} is beyond the log's head {here.head}", head=here.head)
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


def _version(definition: Definition) -> Version:
    members = msgspec.structs.asdict(definition)
    del members["schema"]
    return Version(**members)


def _is_wanted(conflict: Conflict, wanted: ConflictsFilter) -> bool:
    return (
        conflict.seq > wanted.since
        and wanted.collection in (None, conflict.collection)
        and wanted.id in (None, conflict.id)
        and wanted.field in (None, conflict.field)
        and wanted.device in (None, conflict.lost.device, conflict.won.device)
    )
