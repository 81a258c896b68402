"""Folds events into records, and decides which of two conflicting changes wins.
docs/explanation/merge.md has examples.

The server and every device use this same function. Events are folded in the order of their seqs.
The `base` and the device of a changeset tell whether this device had received an earlier write when
it made the changeset. If the device had not received it, the two writes are *concurrent*. A clock
decides one thing only: which of two concurrent writes of a field wins. The losing and the winning
value are then written to the conflict ledger, so that every value that a user typed can be found
again.

    records: dict[Key, Record] = {}
    for event in events:
        conflicts += fold(records, event)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from .changesets import Key as Key
from .changesets import Operation
from .events import Event
from .limits import LIMITS
from .times import parse_time
from .values import ABSENT, is_number, same, size_of, sum_of, utf8_length

#: Increased when the same log folds into other records, or into more data than before. Tables of an
#: older fold version are then rebuilt. 2: every version of a record is kept, and `record-erased`.
#: 3: a record has a size limit, and large values and records are stored in parts.
FOLD_VERSION = 3

#: The limit of `Record.size`. A constant, because all replicas of a log must agree on it.
RECORD_SIZE_MAX = LIMITS.record_size_max
#: the size of a written field beside its name and its value
FIELD_SIZE = 64


# These structs have no reference cycles, so the garbage collector can leave them out (`gc=False`).
# It would visit all records in memory again and again.
class Write(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last write of a field, or the last delete of a record: its seq, its device and its time.

    The result of an `add` also depends on the write before it, and a repeated delete also depends
    on the delete before it. If the earlier event came from another device, `other` is its seq;
    otherwise `other` is 0. A device knows the result only if it has received both events, `seq` and
    `other`.
    """

    seq: int
    device: str | None
    time: int
    other: int = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(msgspec.structs.astuple(self))


#: Writes as they are stored and sent: each distinct write with the names of its fields.
PackedWrites = list[tuple[int, str | None, int, int, list[str]]]


def pack_writes(writes: Mapping[str, Write]) -> PackedWrites:
    """Packs the writes of a record into a shorter form: a list of the distinct writes, each with
    the names of its fields. This saves space because a changeset usually writes several fields.
    Equal writes always give equal lists."""
    distinct = set(writes.values())
    if len(distinct) == 1:  # a shortcut for most records, three times as fast
        return [(*distinct.pop(), sorted(writes))]
    names: dict[Write, list[str]] = {}
    for name in sorted(writes):
        names.setdefault(writes[name], []).append(name)
    return [(*write, names[write]) for write in sorted(names, key=lambda w: (w.seq, w.other))]


def unpack_writes(packed: PackedWrites) -> dict[str, Write]:
    writes: dict[str, Write] = {}
    for seq, device, time, other, names in packed:
        writes |= dict.fromkeys(names, Write(seq, device, time, other))
    return writes


class Cause(msgspec.Struct, frozen=True, gc=False):
    """The facts about a changeset that decide how its operations are merged."""

    seq: int
    device: str | None
    base: int
    time: int
    received_at: str

    def has_seen(self, write: Write) -> bool:
        return (write.seq <= self.base or write.device == self.device) and write.other <= self.base

    def merged_with(self, write: Write | None) -> Write:
        """Returns the `Write` to store for an `add` or a repeated delete, whose result also depends
        on the earlier write or delete `write`.

        The new `Write` has the seq and device of this changeset, and the later of the two times. If
        `write` came from another device, the new `other` is the seq of `write`; otherwise it is the
        `other` of `write`. If `write` is `None`, the new `Write` describes this changeset only.
        """
        if write is None:
            return self.write()
        other = write.other if write.device == self.device else write.seq
        return Write(self.seq, self.device, max(self.time, write.time), other)

    def write(self) -> Write:
        return Write(self.seq, self.device, self.time)


#: The reason why a value lost. Stored in the ledger; never change a name.
Rule = Literal[
    "deleted",  # the author had not seen that the record was deleted
    "concurrent",  # two concurrent writes of one field: the one with the later time wins
    "delete",  # a delete whose author had not seen this value
    "not-addable",  # `add` to a value other than a number, or a sum beyond the range of a double
    "too-large",  # an operation that would make the record larger than the limit
]


class Side(NamedTuple):
    """One side of a conflict: a value (`ABSENT` if the field was unset or deleted), and the event
    that wrote it."""

    value: Any
    seq: int
    device: str | None


class Conflict(NamedTuple):
    """A conflict about one field: the value that lost, and the value that won."""

    seq: int  #: the event at which the conflict was decided
    op: str  #: the operation of that event; for an `add`, a lost value is the number to add
    collection: str
    id: str
    field: str
    rule: Rule
    lost: Side
    won: Side


class Record(msgspec.Struct, gc=False):
    """A record with all data that `fold` needs to apply later events to it. Never change a
    `Record`: `fold` makes a new one for each change.

    `created_seq` is 0 if operations named the record but never created it, for example because they
    were deletes.
    """

    collection: str
    id: str
    fields: dict[str, Any] = {}
    #: the last write of every field since the record was created, unset fields included
    writes: dict[str, Write] = {}
    #: the last delete; kept for ever
    deleted: Write | None = None
    is_deleted: bool = False
    #: the event that last changed the visible state, and when the server received it
    seq: int = 0
    last_modified: str = ""
    created_seq: int = 0
    #: the last event that named this record, and the last one of any other device; lost edits count
    #: too
    touched_seq: int = 0
    touched_by: str | None = None
    touched_seq_other: int = 0
    #: the size that `RECORD_SIZE_MAX` limits (`record_size`), unless it is not yet counted
    size: int | UnsetType = UNSET

    @property
    def exists(self) -> bool:
        """Returns whether the record was ever created. A deleted record (a tombstone) still
        exists."""
        return self.created_seq > 0

    @property
    def is_live(self) -> bool:
        return self.exists and not self.is_deleted

    def touched_by_other(self, device: str) -> int:
        """Returns the seq of the last operation on this record by another device than `device`, or
        0."""
        return self.touched_seq if self.touched_by != device else self.touched_seq_other


class RecordView(msgspec.Struct):
    """A record as apps read it, without the data that only the fold needs."""

    collection: str
    id: str
    fields: dict[str, Any] | msgspec.Raw  #: raw if they come as bytes from the master table
    is_deleted: bool
    last_modified: str
    seq: int
    created_seq: int


def view_of(record: Record) -> RecordView:
    return RecordView(
        record.collection,
        record.id,
        record.fields,
        record.is_deleted,
        record.last_modified,
        record.seq,
        record.created_seq,
    )


def conflict_document(conflict: Conflict) -> dict[str, Any]:
    """Returns a conflict as a JSON document. A side has no `value` if the field was unset or
    deleted there."""

    def document_of(side: Side) -> dict[str, Any]:
        value = {} if side.value is ABSENT else {"value": side.value}
        return {**value, "seq": side.seq, "device": side.device}

    document = conflict._asdict()
    return {**document, "lost": document_of(conflict.lost), "won": document_of(conflict.won)}


class Records(Protocol):
    """The type of the mapping that `fold` reads and updates. A dict from keys to records fits, and
    so does any class with these two methods."""

    def get(self, key: Key, /) -> Record | None: ...
    def __setitem__(self, key: Key, record: Record, /) -> None: ...


def fold(records: Records, event: Event) -> list[Conflict]:
    """Applies one event to `records` in place, and returns the conflicts that it caused.

    `records` must contain every record of `event.keys` that an earlier event has touched. `fold`
    creates the other records. It works record by record, in the order in which the event first
    names them. Refused changesets, erased operations and unknown kinds of events have no effect.
    """
    if not event.is_stored_changeset:
        erased = event.erased_key
        if erased is not None:
            records[erased] = tombstone(erased, event)
        return []
    cause = cause_of(event)
    conflicts: list[Conflict] = []
    for key, ops in event.ops_by_record.items():
        was = records.get(key)
        records[key] = fold_record(was or Record(*key), ops, cause, conflicts)
    return conflicts


def cause_of(event: Event) -> Cause:
    """Returns the facts about a stored changeset that decide how its operations are merged."""
    assert event.device is not UNSET
    return Cause(event.seq, event.device, event.base, event.time, event.received_at)


R = TypeVar("R", bound=Record)


def fold_record(was: R, ops: Sequence[Operation], cause: Cause, conflicts: list[Conflict]) -> R:
    """Applies the operations of one changeset on one record, and returns the new record. Adds the
    conflicts that they cause to `conflicts`. The record `was` stays unchanged."""
    record = _copy(was, fields=dict(was.fields), writes=dict(was.writes))
    record.size = counted_size(record)
    for op in ops:
        _APPLY[op.op](record, op, cause, conflicts)
        _mark_touched(record, cause)
    return record


def counted_size(record: Record) -> int:
    """Returns the size of a record, which is counted only if it is unknown."""
    return record_size(record) if record.size is UNSET else record.size


def record_size(record: Record) -> int:
    """Counts the size of a record: for each field with a write, 64 and the bytes of its name in
    UTF-8, and the size of its value (`size_of`) unless the field is unset.

    An unset field counts, because its write is kept.
    """
    names = sum(FIELD_SIZE + utf8_length(name) for name in record.writes)
    return names + sum(map(size_of, record.fields.values()))


_copy = msgspec.structs.replace


def tombstone(key: Key, event: Event) -> Record:
    """Returns the state of a record after its erasure: deleted, and without fields.

    The state is computed from the `record-erased` event only. The values in earlier operations on
    the record are gone from the log, so a fold that starts again at the first event cannot use
    them. The new fold must still give the same state as the first one.
    """
    return Record(
        *key,
        deleted=Write(event.seq, None, parse_time(event.received_at)),
        is_deleted=True,
        seq=event.seq,
        last_modified=event.received_at,
        created_seq=event.seq,
        touched_seq=event.seq,
        size=0,
    )


def _put(record: Record, op: Operation, cause: Cause, conflicts: list[Conflict]) -> None:
    if _loses_to_delete(record, op, cause, conflicts):
        return
    fields, writes, size = record.fields, record.writes, counted_size(record)
    judged: Write | None = None  # one write often wrote several fields; it is judged once
    is_seen = True
    winners: list[tuple[str, Any, Any]] = []
    found: list[Conflict] = []
    for name, value in _values(op):
        write = writes.get(name)
        if write is not judged:
            judged, is_seen = write, write is None or cause.has_seen(write)
        was = fields.get(name, ABSENT)
        wins = is_seen
        if write is not None and not is_seen:
            wins = cause.time >= write.time
            if not same(was, value):
                old, new = _side_of(was, write), Side(value, cause.seq, cause.device)
                lost, won = (old, new) if wins else (new, old)
                found.append(_conflict(record, op, name, cause, "concurrent", lost, won))
        if wins:
            size += _growth(name, write, was, value)
            winners.append((name, was, value))
    if _loses_to_limit(record, op, size, cause, conflicts):
        return
    conflicts += found
    changed = _create(record, cause)
    mine, record.size = cause.write(), size
    for name, was, value in winners:
        writes[name] = mine
        changed = changed or not same(was, value)
        if value is ABSENT:
            fields.pop(name, None)
        else:
            fields[name] = value
    if changed:
        _mark_changed(record, cause)


def _add(record: Record, op: Operation, cause: Cause, conflicts: list[Conflict]) -> None:
    if _loses_to_delete(record, op, cause, conflicts):
        return
    fields, writes, size = record.fields, record.writes, counted_size(record)
    sums: list[tuple[str, Any, Any]] = []
    found: list[Conflict] = []
    for name, value in _values(op):
        was, write = fields.get(name, ABSENT), writes.get(name)
        start = 0 if was is ABSENT else was
        total = sum_of(start, value) if is_number(start) else None
        if total is None:
            assert write is not None  # every existing value has a write
            lost = Side(value, cause.seq, cause.device)
            found.append(
                _conflict(record, op, name, cause, "not-addable", lost, _side_of(was, write))
            )
            continue
        size += _growth(name, write, was, total)
        sums.append((name, was, total))
    if _loses_to_limit(record, op, size, cause, conflicts):
        return
    conflicts += found
    changed = _create(record, cause)
    record.size = size
    for name, was, total in sums:
        fields[name] = total
        writes[name] = cause.merged_with(writes.get(name))
        changed |= not same(was, total)
    if changed:
        _mark_changed(record, cause)


def _delete(record: Record, op: Operation, cause: Cause, conflicts: list[Conflict]) -> None:
    if not record.exists:
        return
    won = Side(ABSENT, cause.seq, cause.device)
    for name in sorted(record.fields):  # a record that is read from its parts has another order
        value, write = record.fields[name], record.writes[name]
        if not cause.has_seen(write):
            lost = _side_of(value, write)
            conflicts.append(_conflict(record, op, name, cause, "delete", lost, won))
    # Merged with the last delete even if the record was created again since. An author that has
    # seen both deletes is concurrent with one of them.
    record.deleted = cause.merged_with(record.deleted)
    record.fields, record.writes, record.size = {}, {}, 0
    if not record.is_deleted:
        record.is_deleted = True
        _mark_changed(record, cause)


_APPLY = {"put": _put, "add": _add, "delete": _delete}


def _values(op: Operation) -> Iterable[tuple[str, Any]]:
    """Returns the fields that an operation writes, with their values. The value of a field to unset
    is `ABSENT`."""
    values = () if op.fields is UNSET else op.fields.items()
    if op.unset is UNSET:
        return values
    return chain(values, ((name, ABSENT) for name in op.unset))


def _loses_to_delete(
    record: Record, op: Operation, cause: Cause, conflicts: list[Conflict]
) -> bool:
    """Returns true if an earlier delete of the record wins over this operation. The delete wins if
    the device that made the operation had not received the delete at that time. The function then
    adds a conflict to `conflicts` for each value that the operation writes.

    Here the delete comes before the operation in the log. `_delete` handles the case that the
    delete comes after it.
    """
    if record.deleted is None or cause.has_seen(record.deleted):
        return False
    won = Side(ABSENT, record.deleted.seq, record.deleted.device)
    for name, value in _values(op):
        lost = Side(value, cause.seq, cause.device)
        conflicts.append(_conflict(record, op, name, cause, "deleted", lost, won))
    return True


def _create(record: Record, cause: Cause) -> bool:
    """Turns a missing or deleted record, which has no fields, into a live record. Returns whether
    this was necessary."""
    if record.is_live:
        return False
    record.is_deleted, record.created_seq = False, cause.seq
    return True


def _growth(name: str, write: Write | None, was: Any, value: Any) -> int:
    """Returns by how much the record grows if the field gets this value. `write` is the last write
    of the field, and `was` is its value until now."""
    growth = 0 if write is not None else FIELD_SIZE + utf8_length(name)
    if value is not ABSENT:
        growth += size_of(value)
    if was is not ABSENT:
        growth -= size_of(was)
    return growth


def _loses_to_limit(
    record: Record, op: Operation, size: int, cause: Cause, conflicts: list[Conflict]
) -> bool:
    """Returns `True` if the operation would make the record too large: the whole operation then
    changes nothing. Adds a conflict to `conflicts` for each value that is lost.

    `size` is the size to which the operation leads. A record that is larger than the limit already
    may shrink, or keep its size. Each field keeps its value, which wins; if the field was never
    written, the winning side has the seq 0.
    """
    if size <= RECORD_SIZE_MAX or size <= counted_size(record):
        return False
    for name, value in _values(op):
        lost = Side(value, cause.seq, cause.device)
        write = record.writes.get(name)
        won = Side(ABSENT, 0, None)
        if write is not None:
            won = _side_of(record.fields.get(name, ABSENT), write)
        conflicts.append(_conflict(record, op, name, cause, "too-large", lost, won))
    return True


def _mark_changed(record: Record, cause: Cause) -> None:
    """Updates `seq` and `last_modified` of the record, because this event has changed the state
    that apps see."""
    record.seq, record.last_modified = cause.seq, cause.received_at


def _mark_touched(record: Record, cause: Cause) -> None:
    """Stores in the record the seq and the device of its last operation. The guard `unchanged` uses
    them."""
    if record.touched_by != cause.device:
        record.touched_seq_other = record.touched_seq
    record.touched_seq, record.touched_by = cause.seq, cause.device


def _side_of(value: Any, write: Write) -> Side:
    return Side(value, write.seq, write.device)


def _conflict(
    record: Record, op: Operation, field: str, cause: Cause, rule: Rule, lost: Side, won: Side
) -> Conflict:
    return Conflict(cause.seq, op.op, record.collection, record.id, field, rule, lost, won)
