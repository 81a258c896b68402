"""Erases records: removes their values from the log, while all proofs about the log stay valid.

Each operation on the record is replaced by its commitment, a salted hash of its bytes. The salt of
the event is replaced by the separate salts of the operations that stay, because anyone who knows
the event's salt could guess an erased value and test the guess. The header of the event and its
other operations keep their bytes, and the event's leaf in the Merkle tree stays the same.

See docs/explanation/erasure.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from . import proofs
from .changesets import Key, Operation
from .errors import InvalidRequest, UnknownRecord
from .events import RECORD_ERASED, Envelope, LogEntry, body_entry, committed, decode_event
from .values import ABSENT, same

_encode = msgspec.json.encode


class _Body(msgspec.Struct, omit_defaults=True):
    """The body of a `record-erased` event. The members are stored in the order of this class, so
    this order must never change."""

    collection: str
    id: str
    reason: str
    by: str | None = None


def record_erased_entry(envelope: Envelope, key: Key, *, reason: str, by: str | None) -> LogEntry:
    """Makes the log entry of the event that records the erasure of a record. `reason` is the reason
    for the erasure, and `by` is the name of the person who erased the record."""
    return body_entry(envelope, RECORD_ERASED, _Body(*key, reason, by))


def erasures_of(entries: Iterable[LogEntry]) -> dict[Key, int]:
    """Returns a dict from the key of each record that one of these log entries erases, to the seq
    of the last `record-erased` event of the record. Entries of other kinds are skipped."""
    found: dict[Key, int] = {}
    for entry in entries:
        if entry.kind == RECORD_ERASED:
            key = decode_event(entry.state).erased_key
            assert key is not None
            found[key] = entry.seq
    return found


def erase_keys(state: bytes, salt: bytes, keys: Collection[Key]) -> tuple[bytes, bytes] | None:
    """Erases the operations on the records `keys` from a stored changeset. Returns the new bytes of
    the event and its new salt.

    Returns `None` if the changeset has no operations on these records, or if all of these
    operations are erased already.
    """
    event = decode_event(state)
    chosen = {n for n, op in enumerate(event.ops) if op.erased is UNSET and op.key in keys}
    if not chosen:
        return None
    operations = committed(state).operations
    made = proofs.commitments(salt, operations)
    salts = proofs.salts_of(salt, len(operations))
    for n in chosen:
        op = event.ops[n]
        left = _encode(Operation(op.op, op.collection, op.id))
        operations[n] = proofs.erased_form(left, made[n])
        salts[n] = None
    header = proofs.header_of(state)
    return (
        b'%b,"ops":[%b]}' % (header, b",".join(operations)),
        proofs.SALTS_TAG + b"".join(own or proofs.NO_SALT for own in salts),
    )


def erased_entry(entry: LogEntry, keys: Collection[Key]) -> LogEntry:
    """Returns a copy of a log entry in which the operations on the records `keys` are erased. If
    the entry has no such operations, it is returned unchanged."""
    erased = erase_keys(entry.state, entry.salt, keys) if entry.collections is not None else None
    if erased is None:
        return entry
    state, salt = erased
    return msgspec.structs.replace(entry, state=state, salt=salt)


class Selection(msgspec.Struct, frozen=True):
    """Selects the records to erase, either by their keys, or by values that they have or once had.

    `where` is a dict from names of fields to values. A record of `collection` is selected if one of
    its operations in the log contains all of these values, either in `fields` or in `expect`. The
    values may have been overwritten later or may have lost a conflict, and the changeset of the
    operation may have been refused.
    """

    keys: tuple[Key, ...] = ()
    collection: str | None = None
    where: Mapping[str, Any] = {}

    def selects(self, op: Operation) -> bool:
        """Returns whether this operation selects its record for erasure. This is the case if the
        operation edits a record of `collection`, and its `fields` or its `expect` contains all
        values of `where`. An operation that is erased already is ignored."""
        if op.collection != self.collection or op.erased is not UNSET:
            return False
        said = [values for values in (op.fields, op.expect) if isinstance(values, dict)]
        return any(
            all(same(values.get(name, ABSENT), value) for name, value in self.where.items())
            for values in said
        )

    def check(self) -> None:
        """Raises `InvalidRequest` if the selection is empty, or if only one of `collection` and
        `where` is given."""
        if bool(self.where) != (self.collection is not None) or not (self.keys or self.where):
            raise InvalidRequest("select records by their keys, or by a collection and `where`")


class Erasable(msgspec.Struct):
    """A record that can be erased. `events` is the number of events that contain values of the
    record; it is 0 if the record is erased already."""

    collection: str
    id: str
    events: int

    @property
    def key(self) -> Key:
        return self.collection, self.id


class Erased(msgspec.Struct):
    """A record that was erased. `seq` is the seq of its `record-erased` event, and `events` is the
    number of events from which values of the record were removed."""

    collection: str
    id: str
    seq: int
    events: int


class _NamedOperation(msgspec.Struct, gc=False):
    """The members of an operation that are needed to decide whether it must be erased. The values
    of fields are skipped to save time, because an erasure reads the whole log."""

    collection: str
    id: str
    erased: str | None = None


class _Named(msgspec.Struct, gc=False):
    ops: list[_NamedOperation] = []


_decode_named = msgspec.json.Decoder(_Named).decode


class ErasureScan:
    """Reads the events of a log one by one, and collects the seqs of those events that contain
    values of the given records."""

    def __init__(self, keys: Iterable[Key]):
        #: the events with values of each record, in order
        self.seqs: dict[Key, list[int]] = {key: [] for key in keys}
        self.named: set[Key] = set()

    @property
    def collections(self) -> list[str]:
        return sorted({collection for collection, _ in self.seqs})

    def note(self, seq: int, state: bytes) -> None:
        for op in _decode_named(state).ops:
            seqs = self.seqs.get((op.collection, op.id))
            if seqs is not None:
                self.named.add((op.collection, op.id))
                if op.erased is None and seqs[-1:] != [seq]:
                    seqs.append(seq)

    def check_all_named(self) -> None:
        """Raises `UnknownRecord` if one of the given records has no operation in the events that
        were read. Call this method after the last event."""
        for collection, id in self.seqs:
            if (collection, id) not in self.named:
                raise UnknownRecord(f"there is no record {collection}/{id}")

    def erasable(self) -> list[Erasable]:
        return [Erasable(*key, len(seqs)) for key, seqs in sorted(self.seqs.items())]
