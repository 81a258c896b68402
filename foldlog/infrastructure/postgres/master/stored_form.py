"""Packs records for the tables `records` and `versions`, and unpacks them.

A small record is stored whole: in its row of `records`, and in each of its versions. So that a
change of a large record writes little, two things are kept apart:

* A **large value** stays in the log. The row has `null` in its place, and `apart` names the
  operation that wrote it.
* A **large record** is stored in parts. A version then has only the fields that changed since an
  earlier version, and `apart.parts` names the versions below it that complete the record. Each part
  is more than twice as large as the next one, so there are few of them: a change that comes to half
  of the part below is merged with it. The lowest part is a whole record. The row of `records` only
  names the parts.

The form depends on the record's own operations alone. So every rebuild makes the same rows, and an
erasure of another record in the same events changes none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from foldlog.domain.changesets import Key, Operation
from foldlog.domain.events import Event
from foldlog.domain.json_reader import decoder
from foldlog.domain.merge import PackedWrites, Record, pack_writes, tombstone, unpack_writes
from foldlog.domain.values import ABSENT, LoggedValue, size_of

#: A value of at least this size, as `size_of` counts it, stays in the log.
LOGGED_SIZE_MIN = 2_048
#: A record whose rows have at most this many bytes is stored whole.
WHOLE_BYTES_MAX = 2_048
WHOLE_FIELDS_MAX = 64
#: Parts up to this size are merged with each change.
PART_BYTES_MIN = 512
#: A record refers to at most this many events, because each may be large. Values beyond are copied.
LOGGED_EVENTS_MAX = 64

#: where a value is in the log: its event, its operation in the event, and its size
Place = tuple[int, int, int]


class Apart(msgspec.Struct, omit_defaults=True):
    """The column `apart`: what the row leaves out, and where it is. NULL if this is nothing."""

    #: {field: place} of each large value
    logged: dict[str, Place] = {}
    #: fields that the parts below have, and that were unset since
    unset: list[str] = []
    #: (seq, bytes) of each version that the row is based on, the lowest first
    parts: list[tuple[int, int]] = []


NOTHING_APART = Apart()


class Part(NamedTuple):
    """A part of a large record: the version of event `seq`. `values` and `writes` are the names of
    its changed fields and writes. They are empty for the lowest part, which has all of them."""

    seq: int
    size: int
    values: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()


class StoredRecord(Record):
    """A record together with the parts in which it is stored. A record that is stored whole has no
    parts."""

    parts: tuple[Part, ...] = ()


class Version(NamedTuple):
    """A record after one event, as the tables store it.

    `record` lacks its fields if it is stored in parts. `fields` and `apart` are those of the row in
    `versions`. `writes` is `None` if the record is
    stored whole. Otherwise they are those of this part, and `live_apart` names the parts in the row
    of `records`.
    """

    record: StoredRecord
    is_first: bool
    fields: bytes
    apart: bytes | None
    writes: bytes | None
    live_apart: bytes | None

    @property
    def size(self) -> int:
        return sum(map(len, filter(None, (self.fields, self.apart, self.writes, self.live_apart))))


# A large value is encoded as null, see `Apart.logged`.
_encode = msgspec.json.Encoder(enc_hook=lambda _: None).encode
_decode_apart = msgspec.json.Decoder(Apart).decode
_decode_fields = decoder(dict[str, Any]).decode
_decode_writes = msgspec.json.Decoder(PackedWrites).decode


def apart_of(text: bytes | str | None) -> Apart:
    return NOTHING_APART if text is None else _decode_apart(text)


def pack(before: StoredRecord, record: StoredRecord, ops: Sequence[Operation]) -> Version:
    """Returns the rows of a record after an event. `before` is the record before this event, and
    `ops` are the operations of this event on it. Sets `record.parts`."""
    seq = record.touched_seq
    is_first = record.created_seq > 0 and before.created_seq == 0
    _limit_events(record, seq)
    if not before.parts or not record.writes or record.created_seq == seq:
        return _whole(record, seq, is_first)
    named = {name for op in ops for name in _names(op)}
    values = {name for name in named if _is_changed(before.fields, record.fields, name)}
    writes = {name for name in named if before.writes.get(name) != record.writes.get(name)}
    parts = list(before.parts)
    while True:
        fields, written = _changes(record, values, writes)
        size = len(fields) + len(written)
        if parts[-1].size > max(PART_BYTES_MIN, 2 * size):
            break
        below = parts.pop()
        if not parts:
            return _whole(record, seq, is_first)
        values |= below.values
        writes |= below.writes
    record.parts = (*parts, Part(seq, size, frozenset(values), frozenset(writes)))
    apart = Apart(
        _logged({name: record.fields[name] for name in values if name in record.fields}),
        sorted(values - record.fields.keys()),
        [(part.seq, part.size) for part in parts],
    )
    return _in_parts(record, is_first, fields, _encode(apart), written)


def _whole(record: StoredRecord, seq: int, is_first: bool) -> Version:
    """Returns the rows of a record that are based on no other part."""
    logged = _logged(record.fields)
    fields = _encode(record.fields)
    apart = _encode(Apart(logged)) if logged else None
    bytes_of_names = sum(map(len, record.writes))
    if len(record.writes) <= WHOLE_FIELDS_MAX and len(fields) + bytes_of_names <= WHOLE_BYTES_MAX:
        if record.parts:
            # The order of the fields is the one of a record that was read from its parts.
            record.fields = dict(sorted(record.fields.items()))
            record.parts, fields = (), _encode(record.fields)
        return Version(record, is_first, fields, apart, None, None)
    fields, written = (
        _encode(dict(sorted(record.fields.items()))),
        _encode(pack_writes(record.writes)),
    )
    record.parts = (Part(seq, len(fields) + len(written)),)
    return _in_parts(record, is_first, fields, apart, written)


def _in_parts(
    record: StoredRecord, is_first: bool, fields: bytes, apart: bytes | None, writes: bytes
) -> Version:
    live_apart = _encode(Apart(parts=[(part.seq, part.size) for part in record.parts]))
    # Rows wait to be written. They must not keep the record in memory.
    light = msgspec.structs.replace(record, fields={}, writes={})
    return Version(light, is_first, fields, apart, writes, live_apart)


def live_columns(record: StoredRecord) -> tuple[bytes, bytes, bytes | None]:
    """Returns the columns `fields`, `writes` and `apart` of a record's row in `records`."""
    if record.parts:
        return b"{}", b"[]", _encode(Apart(parts=[(p.seq, p.size) for p in record.parts]))
    logged = _logged(record.fields)
    apart = _encode(Apart(logged)) if logged else None
    return _encode(record.fields), _encode(pack_writes(record.writes)), apart


def stored_tombstone(key: Key, event: Event) -> StoredRecord:
    """Returns the state of a record after its erasure."""
    return msgspec.convert(tombstone(key, event), StoredRecord, from_attributes=True)


def _changes(record: Record, values: set[str], writes: set[str]) -> tuple[bytes, bytes]:
    fields = {name: record.fields[name] for name in sorted(values) if name in record.fields}
    return _encode(fields), _encode(pack_writes({name: record.writes[name] for name in writes}))


def _logged(fields: Mapping[str, Any]) -> dict[str, Place]:
    """Returns the places of the values that are in the log, in the order of the names. The order of
    `fields` depends on whether the record was read from its parts, and on the order of a set."""
    found = [(name, value) for name, value in fields.items() if type(value) is LoggedValue]
    return {name: (value.seq, value.op, value.size) for name, value in sorted(found)}


def _limit_events(record: Record, seq: int) -> None:
    """Copies the large values of this event into the record if they are in too many events."""
    if len(record.fields) <= LOGGED_EVENTS_MAX:
        return
    logged = [value for value in record.fields.values() if type(value) is LoggedValue]
    if len({value.seq for value in logged}) > LOGGED_EVENTS_MAX:
        for value in logged:
            if value.seq == seq:
                record.fields[value.name] = value.load()


def _names(op: Operation) -> Iterable[str]:
    yield from op.fields or ()
    yield from op.unset or ()


def _is_changed(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    was, now = before.get(name, ABSENT), after.get(name, ABSENT)
    if was is now:
        return False
    kinds = type(was), type(now)
    return LoggedValue in kinds or type(ABSENT) in kinds or _encode(was) != _encode(now)


def keep_in_log(op: Operation, number: int, seq: int, source: Any) -> list[LoggedValue]:
    """Replaces the large values of an operation, which is `number` of event `seq`, by a
    `LoggedValue` each, and returns these. `source` reads them later."""
    made = []
    if op.op == "put" and op.fields:
        for name, value in op.fields.items():
            kind = type(value)
            if kind is str and 4 * len(value) + 4 < LOGGED_SIZE_MIN:
                continue  # most texts, without counting their bytes
            if kind in (str, list, dict) and (size := size_of(value)) >= LOGGED_SIZE_MIN:
                op.fields[name] = logged = LoggedValue(source, seq, number, name, size, value)
                made.append(logged)
    return made


#: Makes the value of a field that is in the log, from its name and its place.
FromLog = Callable[[str, Place], Any]


def add_fields(
    fields: dict[str, Any], own: dict[str, Any], apart: Apart, from_log: FromLog
) -> None:
    """Adds a part to `fields`, which has the parts below. `own` is the decoded column `fields`."""
    for name in apart.unset:
        fields.pop(name, None)
    for name, place in apart.logged.items():
        own[name] = from_log(name, place)
    fields |= own


class PartRow(NamedTuple):
    """A row of `versions` that is a part of a record."""

    seq: int
    fields: bytes
    writes: bytes
    apart: bytes | None


def unpack(record: StoredRecord, rows: Sequence[PartRow], from_log: FromLog) -> None:
    """Sets the fields, the writes and the parts of a record from its parts, the lowest first."""
    fields: dict[str, Any] = {}
    writes: dict[str, Any] = {}
    parts: list[Part] = []
    for row in rows:
        own, apart = _decode_fields(row.fields), apart_of(row.apart)
        written = unpack_writes(_decode_writes(row.writes))
        names = frozenset((*own, *apart.unset)), frozenset(written)
        parts.append(Part(row.seq, len(row.fields) + len(row.writes), *(names if parts else ())))
        add_fields(fields, own, apart, from_log)
        writes |= written
    record.fields, record.writes, record.parts = fields, writes, tuple(parts)
