"""The event store in memory: appends events, reads ranges of the log, and erases records."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future

import msgspec

from foldlog.domain.changesets import Push
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
from foldlog.domain.errors import FoldlogError, NotStopped, UnknownCollection
from foldlog.domain.events import LogEntry, decode_event, short_form
from foldlog.domain.lookups import Lookups, keys_to_load, keys_unseen
from foldlog.domain.merge import Key, Record
from foldlog.domain.names import check_reason
from foldlog.domain.ports import EventStore, Progress, Range, RangeQuery, Receipt, SpaceId
from foldlog.domain.proofs import SALT_BYTES
from foldlog.domain.push_decider import PushDecider, check_cursor
from foldlog.domain.skipping import Skipped

from .spaces import MemorySpaces, Space


class MemoryEventStore(MemorySpaces, EventStore):
    """Stores the logs in memory. `submit` appends a push at once, and returns a finished future."""

    def submit(self, space: SpaceId, push: Push, rate_key: str = "") -> Future[Receipt]:
        outcome: Future[Receipt] = Future()
        try:
            outcome.set_result(self._push(space, push))
        except Exception as exc:
            outcome.set_exception(exc)
        else:
            self._announce(space)
        return outcome

    def _push(self, space: SpaceId, push: Push) -> Receipt:
        with self._lock:
            here = self._spaces.get(space) or Space()
            decider = PushDecider(
                here.state,
                _lookups(here, push),
                now_ms=self._now_ms(),
                salt=lambda: secrets.token_bytes(SALT_BYTES),
                limits=self._limits,
            )
            answers = decider.take(push)
            self._spaces[space] = here  # a refused push creates no space
            for entry in decider.entries:
                here.append(entry)
            here.state.counters |= decider.counters
            return Receipt(here.log, here.head, answers)

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

    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        try:
            return self.range_after(space, query)
        except FoldlogError:
            return None

    def cached_head(self, space: SpaceId) -> int | None:
        here = self._spaces.get(space)
        return None if here is None else here.head

    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        yield from self._space(space).entries[after:through]

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
        which = "" if version is None else f" in version {version}"
        raise UnknownCollection(f"the collection {collection!r} is not defined{which}")

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
            here = self._spaces.get(space) or Space()
            versions = here.definitions.get(collection, [])
            plan = Plan(collection, wanted, versions[-1] if versions else None)
            plan.check_version()
            plan.check_additive()
            if plan.is_known:
                return plan.outcome(versions[-1].seq, None)
            check = None
            if plan.needs_check:
                check = _check_records(here, plan)
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
            schema = RecordSchema.of(definition.schema)
            here.state.schemas = {**here.state.schemas, collection: schema}
        self._announce(space)
        return plan.outcome(entry.seq, check)

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
                if wanted.selects(op)
            }
            return _scan(here, {*wanted.keys, *found}, report).erasable()

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
            scan = _scan(here, keys, report)
            erased = [self._erase(here, key, scan.seqs[key], reason, by) for key in sorted(keys)]
        self._announce(space)
        return erased

    def _erase(self, here: Space, key: Key, seqs: list[int], reason: str, by: str | None) -> Erased:
        if seqs:
            for seq in seqs:
                entry = erased_entry(here.entries[seq - 1], {key})
                here.entries[seq - 1] = here.by_id[entry.event_id] = entry
            here.append(record_erased_entry(self._envelope(here), key, reason=reason, by=by))
            here.conflicts = [c for c in here.conflicts if (c.collection, c.id) != key]
        return Erased(*key, here.erasures[key], len(seqs))

    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        check_reason(reason, by)
        self._space(space)
        # The master table applies each event at once, so it is never halted.
        raise NotStopped(f"the master table of {space!r} is not halted at seq {seq}")

    def skipped(self, space: SpaceId) -> frozenset[int]:
        return frozenset()


def _lookups(here: Space, push: Push) -> Lookups:
    """Returns the stored data that is needed to accept or refuse a push.

    This data consists of the events, the records, the marks and the erasures to which the push
    refers.
    """
    return Lookups(
        known={c.id: here.by_id[c.id].state for c in push.changesets if c.id in here.by_id},
        records={
            key: here.records.get(key) or Record(*key)
            for key in keys_to_load([push], here.state.schemas)
        },
        marks={} if push.after is None else {push.after: here.mark(push.after)},
        erasures={
            key: here.erasures[key]
            for key in keys_unseen([push], here.state.erased_seq)
            if key in here.erasures
        },
    )


def _check_records(here: Space, plan: Plan) -> Check:
    """Checks all live records of a collection against its new schema, `plan.wanted.schema`.

    Returns a `Check`: the number of checked records, the number of records that violate the schema,
    and a list of the first violating records.
    """
    schema, check = RecordSchema(plan.wanted.schema), Check()
    for key in sorted(here.records):
        record = here.records[key]
        if record.collection == plan.collection and record.is_live:
            check.add(record.id, schema.violation(record.fields))
    return check


def _scan(here: Space, keys: Collection[Key], report: Progress) -> ErasureScan:
    """Searches the whole log for the events that contain values of these records.

    Returns the `ErasureScan` with the found events. Raises `UnknownRecord` if one of the records is
    missing in all events.
    """
    scan = ErasureScan(keys)
    for entry in here.entries:
        scan.note(entry.seq, entry.state)
    scan.check_all_named()
    report(here.head, here.head)
    return scan


def _version(definition: Definition) -> Version:
    members = msgspec.structs.asdict(definition)
    del members["schema"]
    return Version(**members)
