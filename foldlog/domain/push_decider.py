"""What becomes of a push: the decision, made under the space's lock on what is true there.

`PushDecider` is one append transaction's view of a space. Infrastructure loads what the waiting
pushes need, asks `take` for one after another, and stores `entries`. A push that is refused as a
whole raises and leaves no trace, so it never takes along the others that are committed with it.

A push is answered in this order of precedence:

1. its device was revoked: `device-revoked`
2. the cursor does not fit the log: `log-behind`, `log-changed`
3. for each changeset, in order
   a. its id is known: the first answer again, or `id-reused`
   b. its base is beyond the log: `log-behind`
   c. its counter does not follow: `device-forked`, `counter-gap`
4. for each new changeset, in order: stored, or refused as `stale`, or for its `schema`
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .changesets import Changeset, LocalIds, Operation, Push, local_ids, same_content
from .collections import Schemas, needs_records, violated
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
from .limits import LIMITS, Limits
from .merge import Key, Record, RecordView, fold, view_of
from .times import format_time
from .values import ABSENT, same


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    """What became of one changeset. A repeat is answered as the first time."""

    id: str
    verdict: Verdict
    seq: int
    received_at: str
    time: int
    duplicate: bool = False
    refusal: Refusal | UnsetType = UNSET
    ids: LocalIds | UnsetType = UNSET
    #: what the changeset touched, as it is after it; given when asked for, and to the stale
    records: list[RecordView] | UnsetType = UNSET


def time_of(made_at: int, sent_at: int, received_at: int) -> int:
    """When the user made the change, by the server's clock, in ms; used only to break ties.

    The device's clock is corrected by how far it was off at sending. It can't be in the future.
    """
    return max(0, min(received_at, made_at + (received_at - sent_at)))


def check_cursor(log: str, head: int, after: int, mark: str | None, mark_there: str | None) -> None:
    """Raises `LogBehind` or `LogChanged` if a reader's cursor is not of this log.

    `mark_there` is the log's own mark at `after`. A reader without a mark is taken at its word.
    """
    if after > head:
        raise LogBehind(f"after {after} is beyond the log's head {head}", log=log, head=head)
    if mark is not None and mark != mark_there:
        raise LogChanged(f"the mark at {after} is another one here", log=log, head=head)


#: of a space where no collection is defined
NO_SCHEMAS: Schemas = {}


def keys_to_load(pushes: Iterable[Push], schemas: Schemas = NO_SCHEMAS) -> set[Key]:
    """The records whose current state decides these pushes, or is asked for with the answer."""
    return {
        op.key
        for push in pushes
        for changeset in push.changesets
        # Of a guarded one all: the answer to a stale one carries every record that it names. Asked
        # once of a changeset, as each of these may look at all of its operations.
        if push.wants_records
        or changeset.is_guarded
        or (schemas and needs_records(changeset.ops, schemas))
        for op in changeset.ops
    }


def keys_unseen(pushes: Iterable[Push], seq: int) -> set[Key]:
    """The records that these pushes name in changesets which have not seen event `seq`."""
    return {
        op.key
        for push in pushes
        for changeset in push.changesets
        if changeset.base < seq
        for op in changeset.ops
    }


class PushDecider:
    """One space, locked, while the pushes that arrived together are decided.

    `known` holds the stored events of the changeset ids that the pushes name, or `None` for one
    that was too much to be loaded; `counters` the last counter of each pushing device; `revoked`
    those that may push no more; `records` the state at `head` of each of `keys_to_load`, also of
    those that never were, but not of what was too much to be loaded, or `None` if that cannot be
    told now; `marks` the log's mark at each `after` that a push carries; `schemas` are those of the
    space's defined collections; `erasures` the seq of the last erasure of each record that the
    pushes name and that was erased.
    """

    def __init__(
        self,
        *,
        log: str,
        head: int,
        received_at: int,
        known: Mapping[str, bytes | None],
        counters: Mapping[str, int],
        revoked: Collection[str] = (),
        records: Mapping[Key, Record] | None,
        marks: Mapping[int, str],
        salt: Callable[[], bytes],
        erasures: Mapping[Key, int] | None = None,
        limits: Limits = LIMITS,
        schemas: Schemas = NO_SCHEMAS,
    ):
        self.log = log
        self.head = head
        #: what a device can have seen: the others of this transaction were not answered yet
        self._seen_head = head
        self.entries: list[LogEntry] = []  #: to be appended, in order
        self.counters: dict[str, int] = {}  #: of the devices whose pushes brought something new
        self._received_at = received_at
        self._known = known
        #: bytes of events that may still be decoded, each as often as a changeset names it
        self._decodable = limits.looked_up_bytes_max
        self._new: dict[str, LogEntry] = {}  #: by id
        self._counters = counters
        self._revoked = revoked
        self._records = None if records is None else dict(records)
        self._marks = marks
        self._salt = salt
        self._erasures = erasures or {}
        self._limits = limits
        self._schemas = schemas

    def take(self, push: Push) -> list[Answer]:
        """Answers each changeset of a push; what is new of it is added to `entries`.

        Raises `DeviceRevoked`, `LogBehind`, `LogChanged`, `IdReused`, `DeviceForked`,
        `CounterGap`, `LimitExceeded`, or `ProjectionBehind` for a guard, or a schema, on records
        that could not be loaded; then nothing of the push has happened.
        """
        if push.device in self._revoked:
            raise DeviceRevoked(f"the device {push.device} was revoked")
        if push.after is not None:
            check_cursor(
                self.log, self._seen_head, push.after, push.mark, self._marks.get(push.after)
            )
        counter, repeated = self._check(push)
        entries: list[LogEntry] = []
        new: dict[str, LogEntry] = {}
        changed: dict[Key, Record] = {}  # by this push: what was loaded is not copied for each
        records = ChainMap(changed, self._records or {})
        answers: list[Answer] = []
        room = self._limits.page_bytes_max  # for records: a few bytes may ask for many large ones
        for index, changeset in enumerate(push.changesets):
            answer = repeated.get(index)
            if answer is None and changeset.id in new:
                answer = _answer(decode_event(new[changeset.id].state), changeset)
            if answer is None:
                is_judged = bool(self._schemas) and needs_records(changeset.ops, self._schemas)
                if is_judged or changeset.is_guarded or push.wants_records:
                    self._check_loaded(push, index)
                refusal = stale(changeset, push.device, records)
                if is_judged and refusal is UNSET:
                    refusal = self._violated(push, changeset, self.head + len(entries) + 1, records)
                entry = self._entry(push, changeset, self.head + len(entries) + 1, refusal)
                entry = self._without_erased(entry, changeset)
                if len(entry.state) > self._limits.event_bytes_max:
                    raise LimitExceeded(
                        "event_bytes_max", self._limits.event_bytes_max, index=index
                    )
                if self._records:
                    _fold_loaded(records, decode_event(entry.state))
                entries.append(entry)
                new[changeset.id] = entry
                answer = self._first_answer(push, changeset, entry, refusal)
            is_told_records = push.wants_records or answer.verdict == "refused"
            if is_told_records and self._records is not None and room >= 0:
                room -= self._tell_records(push, changeset, answer, records, room)
            answers.append(answer)
        # Only here, where nothing can be refused any more, does the push leave a trace.
        if entries:
            self.head += len(entries)
            self.entries += entries
            self.counters[push.device] = counter
            self._new |= new
            if self._records is not None:
                self._records |= changed
        return answers

    def _tell_records(
        self,
        push: Push,
        changeset: Changeset,
        answer: Answer,
        records: Mapping[Key, Record],
        room: int,
    ) -> int:
        """Adds to an answer what the changeset touched, and returns its bytes; if there are more
        than there is `room`, that is told only to who asked for it."""
        views = _views(changeset.ops, records)
        if views is None:
            if push.wants_records:
                raise self._too_much()
            return 0
        size = sum(len(msgspec.json.encode(view)) for view in views)
        if size <= room:
            answer.records = views
        elif push.wants_records:
            raise LimitExceeded("page_bytes_max", self._limits.page_bytes_max)
        return size

    def _event(self, id: str) -> Event | None:
        """The event of a changeset id that is stored already, or will be with this transaction.

        Decoded each time, and kept by nobody: it may be large, and few come again.
        """
        if id in self._known:
            state = self._known[id]
        elif id in self._new:
            state = self._new[id].state
        else:
            return None
        if state is None or self._decodable <= 0:
            raise self._too_much()
        self._decodable -= len(state)
        return decode_event(state)

    def _too_much(self, **where: Any) -> LimitExceeded:
        return LimitExceeded("looked_up_bytes_max", self._limits.looked_up_bytes_max, **where)

    def _check_loaded(self, push: Push, index: int) -> None:
        """Raises unless the records are at hand that a changeset is decided on."""
        if self._records is None:
            raise ProjectionBehind(head=self.head)
        if any(op.key not in self._records for op in push.changesets[index].ops):
            # A smaller push may be the cure; of one changeset there is none.
            raise self._too_much(**({"index": index} if len(push.changesets) == 1 else {}))

    def _check(self, push: Push) -> tuple[int, dict[int, Answer]]:
        """Finds that all of a push fits the log. Returns its device's counter after it, and the
        answers to those of its changesets, by index, whose ids were known before it."""
        first: dict[str, Changeset] = {}
        repeated: dict[int, Answer] = {}
        counter = self.counters.get(push.device, self._counters.get(push.device, 0))
        for index, changeset in enumerate(push.changesets):
            event = self._event(changeset.id)
            before = first.get(changeset.id) if event is None else event
            if before is not None:
                if not same_content(changeset, before):
                    raise IdReused(index=index, id=changeset.id)
                if event is not None:
                    repeated[index] = _answer(event, changeset)
                continue
            first[changeset.id] = changeset
            if changeset.base > self._seen_head:
                raise LogBehind(
                    f"base {changeset.base} is beyond the log's head {self._seen_head}",
                    index=index,
                    log=self.log,
                    head=self._seen_head,
                )
            if changeset.counter is not UNSET:
                counter += 1
                if changeset.counter < counter:
                    raise DeviceForked(index=index, counter=changeset.counter, expected=counter)
                if changeset.counter > counter:
                    raise CounterGap(index=index, counter=changeset.counter, expected=counter)
        return counter, repeated

    def _first_answer(
        self, push: Push, changeset: Changeset, entry: LogEntry, refusal: Refusal | UnsetType
    ) -> Answer:
        return Answer(
            id=changeset.id,
            verdict="stored" if refusal is UNSET else "refused",
            seq=entry.seq,
            received_at=format_time(self._received_at),
            time=time_of(changeset.made_at_ms, push.sent_at_ms, self._received_at),
            refusal=refusal,
            ids=local_ids(changeset.ops) or UNSET,
        )

    def _violated(
        self, push: Push, changeset: Changeset, seq: int, records: Mapping[Key, Record]
    ) -> Refusal | UnsetType:
        event = Event(
            seq=seq,
            kind="changeset",
            id=changeset.id,
            received_at=format_time(self._received_at),
            verdict="stored",
            device=push.device,
            base=changeset.base,
            time=time_of(changeset.made_at_ms, push.sent_at_ms, self._received_at),
            ops=list(changeset.ops),
        )
        return violated(event, records, self._schemas)

    def _entry(
        self, push: Push, changeset: Changeset, seq: int, refusal: Refusal | UnsetType
    ) -> LogEntry:
        return changeset_entry(
            changeset,
            seq=seq,
            device=push.device,
            received_at=self._received_at,
            time=time_of(changeset.made_at_ms, push.sent_at_ms, self._received_at),
            refusal=refusal,
            salt=self._salt(),
        )

    def _without_erased(self, entry: LogEntry, changeset: Changeset) -> LogEntry:
        """What has not seen a record's erasure is stored without what it says of that record."""
        if not self._erasures:
            return entry
        keys = {op.key for op in changeset.ops}
        return erased_entry(
            entry, {key for key in keys if self._erasures.get(key, 0) > changeset.base}
        )


def _fold_loaded(records: MutableMapping[Key, Record], event: Event) -> None:
    """Folds what an event does to the records that are at hand; the others are no matter here."""
    ops = [op for op in event.ops if op.key in records]
    if ops:
        fold(records, msgspec.structs.replace(event, ops=ops))


def stale(changeset: Changeset, device: str, records: Mapping[Key, Record]) -> Refusal | UnsetType:
    """Why a changeset's guards refuse it, decided on the records as they are before it."""
    for op in changeset.ops:
        if changeset.guard is not UNSET or op.is_guarded:
            why = _broken_guard(changeset, op, device, records[op.key])
            if why is not None:
                return Refusal("stale", f"{op.collection}/{op.id}: {why}")
    return UNSET


def _broken_guard(changeset: Changeset, op: Operation, device: str, record: Record) -> str | None:
    if changeset.guard == "unchanged":
        touched = record.touched_by_other(device)
        if touched > changeset.base:
            return f"another device changed it at seq {touched}, after base {changeset.base}"
    if op.if_seq is not UNSET:
        seq = record.seq if record.exists else 0
        if seq != op.if_seq:
            return f"its seq is {seq}, not {op.if_seq}"
    if op.expect is None and record.exists:
        return f"it exists, since seq {record.created_seq}"
    if isinstance(op.expect, dict):
        if not record.is_live:
            return "it does not exist" if not record.exists else f"deleted at seq {record.seq}"
        for name, value in op.expect.items():
            if not same(record.fields.get(name, ABSENT), value):
                # Which field is not told: a refusal can never be erased from the log.
                return "a field has another value"
    return None


def _answer(event: Event, changeset: Changeset) -> Answer:
    """The first answer again."""
    assert event.verdict is not UNSET
    # An erased operation has forgotten its device's own key; who sends it again still knows it.
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
    """`None` if not all of them are at hand."""
    keys = dict.fromkeys(op.key for op in ops)
    if any(key not in records for key in keys):
        return None
    found = (records[key] for key in keys)
    return [view_of(record) for record in found if record.exists]
