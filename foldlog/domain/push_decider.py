"""Decides pushes: which changesets are stored, which are refused, and the answer to each.

`PushDecider` decides a group of pushes on one state of a space. Infrastructure loads the data that
the group needs, calls `take` for one push after another, and appends `entries` to the log. If a
push is refused as a whole, `take` raises an error and leaves the decider unchanged. The other
pushes of the group are then decided as if that push were absent.

A push is checked in this order:

1. If its device was revoked, the push is refused with `device-revoked`.
2. If its cursor belongs to another log, the push is refused with `log-behind` or `log-changed`.
3. Each changeset is checked, in order:
   a. If its id is known, it gets its first answer again. If the content differs from the stored
      content, the push is refused with `id-reused`.
   b. If its base is higher than the log's head, the push is refused with `log-behind`.
   c. If its counter is lower than the next counter of the device, the push is refused with
      `device-forked`; if it is higher, with `counter-gap`.
4. Each new changeset is stored or refused, in order: it is refused with `stale` if the condition of
   a guard is false, and with `schema` if it violates a schema.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .changesets import Changeset, LocalIds, Operation, Push, local_ids, same_content
from .collections import changeset_needs_records, schema_refusal
from .erasure import erased_entry
from .errors import (
    CounterGap,
    DeviceForked,
    DeviceRevoked,
    IdReused,
    LimitExceeded,
    LogBehind,
    LogChanged,
    ProjectionBehind,
)
from .events import Event, LogEntry, Refusal, Verdict, changeset_entry, decode_event
from .guards import stale
from .limits import LIMITS, Limits
from .lookups import Lookups
from .merge import Key, Record, RecordView, fold, view_of
from .space_state import SpaceState
from .step_budget import GROUP_STEPS_MAX, Steps, TooManySteps
from .times import format_time


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    """The answer to one changeset of a push. A repeated changeset gets its first answer again,
    marked with `duplicate`."""

    id: str
    verdict: Verdict
    seq: int
    received_at: str
    time: int
    duplicate: bool = False
    refusal: Refusal | UnsetType = UNSET
    ids: LocalIds | UnsetType = UNSET
    #: the touched records after the changeset, if the push wants records or the verdict is refused
    records: list[RecordView] | UnsetType = UNSET


def time_of(made_at: int, sent_at: int, received_at: int) -> int:
    """Returns when the user made the change, by the server's clock, in ms since 1970. This time is
    only used to decide which of two conflicting changes wins.

    The result is `made_at`, the time by the device's clock, plus the difference between the two
    clocks when the push was sent. It is limited to 0..`received_at`.
    """
    return max(0, min(received_at, made_at + (received_at - sent_at)))


def check_cursor(log: str, head: int, after: int, mark: str | None, mark_there: str | None) -> None:
    """Checks that a reader's cursor, the seq `after` with its `mark`, belongs to this log.

    Raises `LogBehind` if `after` is higher than `head`. Raises `LogChanged` if `mark` differs from
    `mark_there`, the log's own mark at `after`. If `mark` is `None`, the marks are not compared.
    """
    if after > head:
        raise LogBehind(f"after {after} is beyond the log's head {head}", log=log, head=head)
    if mark is not None and mark != mark_there:
        raise LogChanged(f"the mark at {after} is another one here", log=log, head=head)


@dataclass(slots=True)
class _Draft:
    """Collects the new changesets of one push. `PushDecider` adds them to the group only if the
    whole push is accepted."""

    records: MutableMapping[Key, Record]  #: after these changesets
    entries: list[LogEntry] = field(default_factory=list)
    by_id: dict[str, LogEntry] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)  #: left for checks against the schemas


class PushDecider:
    """Decides the pushes of one group, all on the same state of a space.

    `state` must contain the counters of the pushing devices. `now_ms` is the time by the server's
    clock, in ms since 1970. `salt` is a function that returns a new random salt at each call.
    `steps` is the budget of the group for checks against schemas. The decider takes from it, and
    the caller ends the group when it is used up.
    """

    def __init__(
        self,
        state: SpaceState,
        lookups: Lookups,
        *,
        now_ms: int,
        salt: Callable[[], bytes],
        limits: Limits = LIMITS,
        steps: Steps | None = None,
    ):
        self.state = state
        self.head = state.head
        self.entries: list[LogEntry] = []  #: to be appended, in order
        self.counters: dict[str, int] = {}  #: of the devices that pushed new changesets
        self._lookups = lookups
        self._received_at = state.next_received_at(now_ms)
        #: bytes of stored events that may still be decoded; each lookup of an event counts
        self._decodable = limits.looked_up_bytes_max
        self._new: dict[str, LogEntry] = {}  #: `entries` by id
        self._records = None if lookups.records is None else dict(lookups.records)
        self._salt = salt
        self._limits = limits
        self._steps = steps or Steps(GROUP_STEPS_MAX)

    def take(self, push: Push) -> list[Answer]:
        """Decides one push: returns the answers to its changesets, and adds the new changesets to
        `entries`.

        Raises an error if the push is refused as a whole: `DeviceRevoked`, `LogBehind`,
        `LogChanged`, `IdReused`, `DeviceForked`, `CounterGap` or `LimitExceeded`. Raises
        `ProjectionBehind` if the push can be decided or answered only with the current state of
        records, but the master table is still behind the log. After an error, the decider is
        unchanged.
        """
        self._check_device_and_cursor(push)
        counter, repeated = self._check_changesets(push)
        changed: dict[Key, Record] = {}  # a layer, because copying all loaded records is slower
        steps = Steps(self._limits.schema_steps_per_push_max)
        draft = _Draft(ChainMap(changed, self._records or {}), steps=steps)
        answers: list[Answer] = []
        # A few bytes of a push may ask for many large records.
        records_bytes_left = self._limits.page_bytes_max
        for index, changeset in enumerate(push.changesets):
            answer = repeated.get(index)
            if answer is None and changeset.id in draft.by_id:
                answer = _answer_again(decode_event(draft.by_id[changeset.id].state), changeset)
            if answer is None:
                answer = self._add(draft, push, index)
            has_records = push.wants_records or answer.verdict == "refused"
            if has_records and self._records is not None and records_bytes_left >= 0:
                records_bytes_left -= self._add_records(
                    answer, push, changeset, draft.records, records_bytes_left
                )
            answers.append(answer)
        # The push is accepted. Only from here on may it change this object.
        if draft.entries:
            self.head += len(draft.entries)
            self.entries += draft.entries
            self.counters[push.device] = counter
            self._new |= draft.by_id
            if self._records is not None:
                self._records |= changed
        return answers

    def _check_device_and_cursor(self, push: Push) -> None:
        if push.device in self.state.revoked:
            raise DeviceRevoked(f"the device {push.device} was revoked")
        if push.after is not None:
            mark_there = self._lookups.marks.get(push.after)
            check_cursor(self.state.log, self.state.head, push.after, push.mark, mark_there)

    def _check_changesets(self, push: Push) -> tuple[int, dict[int, Answer]]:
        """Checks the ids, bases and counters of the changesets in a push. Raises an error if an id,
        a base or a counter contradicts the log.

        Returns two values: the device's counter after the push, and the answers to repeated
        changesets as {index in the push: answer}.
        """
        first: dict[str, Changeset] = {}
        repeated: dict[int, Answer] = {}
        # The base is compared with the head before the group, because later events are still
        # unknown to all devices.
        head = self.state.head
        counter = self.counters.get(push.device, self.state.counters.get(push.device, 0))
        for index, changeset in enumerate(push.changesets):
            event = self._event(changeset.id)
            before = first.get(changeset.id) if event is None else event
            if before is not None:
                if not same_content(changeset, before):
                    raise IdReused(index=index, id=changeset.id)
                if event is not None:
                    repeated[index] = _answer_again(event, changeset)
                continue
            first[changeset.id] = changeset
            if changeset.base > head:
                raise LogBehind(
                    f"base {changeset.base} is beyond the log's head {head}",
                    index=index,
                    log=self.state.log,
                    head=head,
                )
            if changeset.counter is not UNSET:
                counter += 1
                if changeset.counter < counter:
                    raise DeviceForked(index=index, counter=changeset.counter, expected=counter)
                if changeset.counter > counter:
                    raise CounterGap(index=index, counter=changeset.counter, expected=counter)
        return counter, repeated

    def _event(self, id: str) -> Event | None:
        """Returns the event of the changeset with this id, from the log or from this group. Returns
        `None` if the id is new.

        Raises `LimitExceeded` if the event was too large to be loaded. Also raises `LimitExceeded`
        if the events that were decoded before for this group already have `looked_up_bytes_max`
        bytes in total.

        Each call decodes the event again. Decoded events are dropped, because they may be large and
        few ids are repeated.
        """
        if id in self._lookups.known:
            state = self._lookups.known[id]
        elif id in self._new:
            state = self._new[id].state
        else:
            return None
        if state is None or self._decodable <= 0:
            raise self._too_much()
        self._decodable -= len(state)
        return decode_event(state)

    def _add(self, draft: _Draft, push: Push, index: int) -> Answer:
        """Decides one new changeset, adds its event to the draft, and returns the answer."""
        changeset = push.changesets[index]
        schemas = self.state.schemas
        seq = self.head + len(draft.entries) + 1
        time = time_of(changeset.made_at_ms, push.sent_at_ms, self._received_at)
        try:
            needs_schema = bool(schemas) and changeset_needs_records(push, index, schemas)
        except TooManySteps:
            raise self._too_many_steps() from None
        if needs_schema or changeset.is_guarded or push.wants_records:
            self._check_loaded(push, index)
        refusal = stale(changeset, push.device, draft.records)
        if needs_schema and refusal is UNSET:
            event = self._event_to_check(push, changeset, seq, time)
            before = draft.steps.spent
            try:
                refusal = schema_refusal(event, draft.records, schemas, draft.steps)
            except TooManySteps:
                raise self._too_many_steps() from None
            finally:
                self._steps.take(draft.steps.spent - before)
        entry = changeset_entry(
            changeset,
            seq=seq,
            device=push.device,
            received_at=self._received_at,
            time=time,
            refusal=refusal,
            salt=self._salt(),
        )
        if self._lookups.erasures:
            entry = self._without_erased(entry, changeset)
        if len(entry.state) > self._limits.event_bytes_max:
            raise LimitExceeded("event_bytes_max", self._limits.event_bytes_max, index=index)
        if self._records:
            _fold_loaded(draft.records, decode_event(entry.state))
        draft.entries.append(entry)
        draft.by_id[changeset.id] = entry
        return Answer(
            id=changeset.id,
            verdict="stored" if refusal is UNSET else "refused",
            seq=seq,
            received_at=format_time(self._received_at),
            time=time,
            refusal=refusal,
            ids=local_ids(changeset.ops) or UNSET,
        )

    def _check_loaded(self, push: Push, index: int) -> None:
        """Raises an error if a record that the changeset touches is missing in the loaded data:
        `ProjectionBehind` if the master table is behind, otherwise `LimitExceeded`."""
        if self._records is None:
            raise ProjectionBehind(head=self.head)
        if any(op.key not in self._records for op in push.changesets[index].ops):
            # The device may split the push. A push of one changeset is refused with its index.
            raise self._too_much(**({"index": index} if len(push.changesets) == 1 else {}))

    def _too_much(self, **extra: Any) -> LimitExceeded:
        return LimitExceeded("looked_up_bytes_max", self._limits.looked_up_bytes_max, **extra)

    def _too_many_steps(self) -> LimitExceeded:
        # The device may split the push. One changeset alone is always decided.
        limit = "schema_steps_per_push_max"
        return LimitExceeded(limit, self._limits.schema_steps_per_push_max)

    def _event_to_check(self, push: Push, changeset: Changeset, seq: int, time: int) -> Event:
        """Makes the event that a new changeset would become if it were stored. `schema_refusal`
        folds this event to check the changeset against the schemas."""
        return Event(
            seq=seq,
            kind="changeset",
            id=changeset.id,
            received_at=format_time(self._received_at),
            verdict="stored",
            device=push.device,
            base=changeset.base,
            time=time,
            ops=list(changeset.ops),
        )

    def _without_erased(self, entry: LogEntry, changeset: Changeset) -> LogEntry:
        """Returns a changeset's log entry without the values of records that were erased after the
        changeset's `base`. If there are no such records, the entry is returned unchanged."""
        erasures = self._lookups.erasures
        keys = {op.key for op in changeset.ops}
        return erased_entry(entry, {key for key in keys if erasures.get(key, 0) > changeset.base})

    def _add_records(
        self,
        answer: Answer,
        push: Push,
        changeset: Changeset,
        records: Mapping[Key, Record],
        bytes_max: int,
    ) -> int:
        """Adds the records that a changeset touches to the answer. Returns the size of these
        records as JSON in bytes, or 0 if they were not loaded.

        If the records are larger than `bytes_max` or were not loaded, they cannot be added. If the
        push has asked for the records (`wants_records`), the method then raises `LimitExceeded`,
        and the whole push is refused. Otherwise the answer is sent without the records.
        """
        views = _views(changeset.ops, records)
        if views is None:
            if push.wants_records:
                raise self._too_much()
            return 0
        size = sum(len(msgspec.json.encode(view)) for view in views)
        if size <= bytes_max:
            answer.records = views
        elif push.wants_records:
            raise LimitExceeded("page_bytes_max", self._limits.page_bytes_max)
        return size


def _fold_loaded(records: MutableMapping[Key, Record], event: Event) -> None:
    """Applies an event to the loaded records. Operations on records that were not loaded are
    skipped."""
    ops = [op for op in event.ops if op.key in records]
    if ops:
        fold(records, msgspec.structs.replace(event, ops=ops))


def _answer_again(event: Event, changeset: Changeset) -> Answer:
    """Makes the answer to a repeated changeset from its stored event. The result equals the first
    answer to this changeset, except that `duplicate` is true."""
    assert event.verdict is not UNSET
    # An erased operation has lost the device's own key, which the repeated changeset still has.
    erased = {op.key for op in event.ops if op.erased is not UNSET}
    ids = local_ids([*event.ops, *(op for op in changeset.ops if op.key in erased)])
    return Answer(
        id=event.id,
        verdict=event.verdict,
        seq=event.seq,
        received_at=event.received_at,
        time=event.time,
        duplicate=True,
        refusal=event.refusal,
        ids=ids or UNSET,
    )


def _views(ops: Iterable[Operation], records: Mapping[Key, Record]) -> list[RecordView] | None:
    """Returns a list with a `RecordView` of each record that these operations touch, without
    records that were never created. Returns `None` if one of the touched records was not loaded."""
    keys = dict.fromkeys(op.key for op in ops)
    if any(key not in records for key in keys):
        return None
    found = (records[key] for key in keys)
    return [view_of(record) for record in found if record.exists]
