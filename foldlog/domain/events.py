"""Defines events, which are the content of the log, and makes their bytes, which every reader
receives unchanged.

The bytes of an event are made once, when the event is stored. A page of the log is made by joining
these bytes. The names of kinds and keys are part of the stored bytes, so they must stay the same
for ever. tests/unit/test_stored_form.py keeps an example of each kind to check this.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from . import proofs
from .changesets import Changeset, Key, LocalIds, Operation, local_ids
from .json_reader import decoder
from .limits import INTEGER_MAX
from .names import is_collection, is_record_id, is_uuid
from .times import format_time, parse_time

Verdict = Literal["stored", "refused"]

RECORD_ERASED = "record-erased"
EVENT_SKIPPED = "event-skipped"


class Refusal(msgspec.Struct):
    """The reason why a changeset was refused: a stable code for programs, and a sentence for
    people."""

    code: Literal["stale", "schema"]
    detail: str


class Event(msgspec.Struct, omit_defaults=True, gc=False):
    """An event as readers decode it. Unknown members are ignored, and unknown kinds are accepted.

    A changeset has `ops`; every other kind of event has a `body`. In the stored bytes, `ops` or
    `body` is the last key.
    """

    seq: int
    kind: str
    id: str
    received_at: str
    verdict: Verdict | UnsetType = UNSET
    device: str | UnsetType = UNSET
    counter: int | UnsetType = UNSET
    base: int = 0
    made_at: str | UnsetType = UNSET
    time: int = 0
    guard: Literal["unchanged"] | UnsetType = UNSET
    refusal: Refusal | UnsetType = UNSET
    ops: list[Operation] = []
    body: Any = UNSET
    #: only in the short form, in which a device receives its own changesets
    ids: LocalIds | UnsetType = UNSET
    #: only in the short form: the indexes of erased operations, from 0
    erased: list[int] | UnsetType = UNSET
    form: int = 1  #: the version of the stored form of its kind

    @property
    def is_stored_changeset(self) -> bool:
        return self.kind == "changeset" and self.verdict == "stored"

    @property
    def erased_key(self) -> Key | None:
        """Returns the key of the record that this event erases, if it is a `record-erased` event.
        For all other kinds, returns `None`.

        Raises `ValueError` if the body of the event is invalid. The event is then forged or
        damaged.
        """
        if self.kind != RECORD_ERASED:
            return None
        body = _body_as(self.body, _Erased)
        if not (is_collection(body.collection) and is_record_id(body.id)):
            raise ValueError("invalid name of a record")
        return body.collection, body.id

    @property
    def skipped_seq(self) -> int | None:
        """Returns the seq of the event that every fold must skip, if this event is an
        `event-skipped` event. For all other kinds, returns `None`. Raises `ValueError` if the body
        of the event is invalid."""
        return _body_as(self.body, _Skipped).seq if self.kind == EVENT_SKIPPED else None

    @property
    def keys(self) -> Collection[Key]:
        """Returns the keys of the records that this event may change, without duplicates and in the
        order of the operations. `fold` changes exactly these records."""
        if self.is_stored_changeset:
            if len(self.ops) == 1 and self.ops[0].erased is UNSET:  # a shortcut for most events
                return (self.ops[0].key,)
            return dict.fromkeys(op.key for op in self.ops if op.erased is UNSET)
        key = self.erased_key
        return () if key is None else (key,)

    @property
    def ops_by_record(self) -> dict[Key, list[Operation]]:
        """Returns a dict from the key of each record that this changeset edits to its operations on
        the record. The keys are in the order in which the changeset first names them. Erased
        operations are left out."""
        found: dict[Key, list[Operation]] = {}
        for op in self.ops:
            if op.erased is UNSET:
                found.setdefault(op.key, []).append(op)
        return found


class _Erased(msgspec.Struct):
    """The members that a fold needs from the body of a `record-erased` event."""

    collection: str
    id: str


class _Skipped(msgspec.Struct):
    seq: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)]


T = TypeVar("T")


def _body_as(body: Any, form: type[T]) -> T:
    try:
        return msgspec.convert(body, form)
    except msgspec.ValidationError as exc:
        raise ValueError(f"body: {exc}") from exc


class _Header(msgspec.Struct, omit_defaults=True, gc=False):
    """The members of a changeset's event that are stored before `ops`. Their order must never
    change, because the event's leaf in the Merkle tree contains them."""

    seq: int
    kind: str
    verdict: str
    id: str
    device: str
    counter: int | UnsetType
    base: int
    made_at: str
    received_at: str
    time: int
    guard: str | UnsetType = UNSET
    refusal: Refusal | UnsetType = UNSET


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """An event as the log stores it: its bytes, and the columns by which the database finds it."""

    seq: int
    kind: str
    event_id: str
    device: str | None
    received_at: int  #: ms since 1970
    #: the collections that a changeset touches; `None` for every other kind
    collections: list[str] | None
    state: bytes
    salt: bytes
    ops_hash: bytes

    @property
    def leaf(self) -> bytes:
        """Returns the event's leaf in the Merkle tree. The leaf contains a hash in the place of the
        operations or the body."""
        return proofs.leaf_of(proofs.leaf_header_of(self.state), self.ops_hash)

    @property
    def mark(self) -> str:
        return _mark_of(proofs.leaf_header_of(self.state), self.ops_hash)


# The mark of a group's last event is needed again and again. The cache is keyed by the header,
# because an entry outlives the event and must not hold values that may be erased.
@lru_cache(maxsize=1_024)
def _mark_of(header: bytes, ops_hash: bytes) -> str:
    return proofs.mark_of(header, ops_hash)


_encode = msgspec.json.encode
_decode = decoder(Event).decode


def decode_event(state: bytes) -> Event:
    return _decode(state)


def changeset_entry(
    changeset: Changeset,
    *,
    seq: int,
    device: str,
    received_at: int,
    time: int,
    refusal: Refusal | UnsetType,
    salt: bytes,
) -> LogEntry:
    """Makes the log entry of a changeset: its bytes, and the hash that commits to its operations.
    Times are in ms since 1970."""
    header = _encode(
        _Header(
            seq=seq,
            kind="changeset",
            verdict="stored" if refusal is UNSET else "refused",
            id=changeset.id,
            device=device,
            counter=changeset.counter,
            base=changeset.base,
            made_at=format_time(changeset.made_at_ms),
            received_at=format_time(received_at),
            time=time,
            guard=changeset.guard,
            refusal=refusal,
        )
    )[:-1]
    operations = [_encode(op) for op in changeset.ops]
    state = b'%b,"ops":[%b]}' % (header, b",".join(operations))
    return LogEntry(
        seq=seq,
        kind="changeset",
        event_id=changeset.id,
        device=device,
        received_at=received_at,
        collections=sorted({op.collection for op in changeset.ops}),
        state=state,
        salt=salt,
        ops_hash=proofs.ops_hash(salt, operations),
    )


class _BodyHeader(msgspec.Struct):
    """The members of an event that are stored before `body`. Their order must never change, because
    the event's leaf in the Merkle tree contains them."""

    seq: int
    kind: str
    id: str
    received_at: str


class Envelope(NamedTuple):
    """The metadata of a new event that has a body. `received_at` is in ms since 1970."""

    seq: int
    id: str
    received_at: int
    salt: bytes


def body_entry(envelope: Envelope, kind: str, body: Any) -> LogEntry:
    """Makes the log entry of an event that has a body: every kind except a changeset.

    The body is hashed like a single operation: `ops_hash` is computed as for a changeset whose only
    operation is the body.
    """
    seq, id, received_at, salt = envelope
    header = _encode(_BodyHeader(seq, kind, id, format_time(received_at)))[:-1]
    encoded = _encode(body)
    return LogEntry(
        seq=seq,
        kind=kind,
        event_id=id,
        device=None,
        received_at=received_at,
        collections=None,
        state=b'%b,"body":%b}' % (header, encoded),
        salt=salt,
        ops_hash=proofs.ops_hash(salt, [encoded]),
    )


class _Committed(msgspec.Struct):
    seq: int
    kind: str
    received_at: str
    ops: list[msgspec.Raw] | UnsetType = UNSET
    body: msgspec.Raw | UnsetType = UNSET


_decode_committed = msgspec.json.Decoder(_Committed).decode


class Committed(NamedTuple):
    """The parts of an event that the hashes in the Merkle tree cover."""

    seq: int
    received_at: str
    header: bytes
    operations: list[bytes]
    has_body: bool

    def ops_hash(self, salt: bytes) -> bytes:
        """Computes the hash of the operations or the body, as 32 bytes. `salt` is the stored salt
        of the event, or the stored salts of its operations after an erasure.

        Raises `ValueError` if the salt does not fit. Only operations are erased, so the salt of a
        body always has 32 bytes. Otherwise a forged body with the commitment of the real one
        would pass as erased.
        """
        if self.has_body and len(salt) != proofs.SALT_BYTES:
            raise ValueError("a body needs a salt of 32 bytes")
        return proofs.ops_hash(salt, self.operations)


def committed(state: bytes) -> Committed:
    """Splits the stored bytes of an event into the parts that the hashes cover.

    Returns a `Committed`. If the event is a changeset, `operations` contains the bytes of each
    operation. If the event is an event of the service, `operations` contains its body only.

    Raises `ValueError` if the bytes are not in the exact form in which the service stores an event,
    for example because a blank was added. Raises `ValueError` too if a changeset has a body, or if
    an event of another kind has operations: the leaf covers the kind, but not the name of the last
    key, so a changeset with its operation renamed to a body would pass and change no record.
    """
    found = _decode_committed(state)
    header = proofs.header_of(state)
    if found.ops is not UNSET:
        operations = [bytes(op) for op in found.ops]
        end = b',"ops":[%b]}' % b",".join(operations)
    elif found.body is not UNSET:
        operations = [bytes(found.body)]
        end = b',"body":%b}' % operations[0]
    else:
        raise ValueError("an event must have ops or a body")
    if len(header) + len(end) != len(state) or not state.endswith(end):
        raise ValueError("an event must end with its ops or its body, without spaces")
    has_body = found.ops is UNSET
    if has_body == (found.kind == "changeset"):
        raise ValueError("a changeset must end with its ops, any other event with its body")
    return Committed(found.seq, found.received_at, header, operations, has_body)


def restored_entry(state: bytes, salt: bytes) -> LogEntry:
    """Makes the log entry of an exported event from its bytes and its salt.

    Raises `ValueError` if the bytes are not in the exact form in which the service stores an event,
    or if an id in the bytes is invalid. Raises `ValueError` too if the salt does not fit the
    event's operations, because the salt then belongs to another event.
    """
    try:
        event, apart = _decode(state), committed(state)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(f"not an event: {exc}") from exc
    if not is_uuid(event.id) or not (event.device is UNSET or is_uuid(event.device)):
        raise ValueError("the ids of an event and of a device must be UUIDs in lower case")
    for op in event.ops:
        # Fewer checks than for a push, because limits may have differed when the event was stored.
        if op.id is UNSET or not is_record_id(op.id) or not is_collection(op.collection):
            raise ValueError("an operation must name a record by its collection and id")
    if not apart.has_body:
        are_erased = [own is None for own in proofs.salts_of(salt, len(apart.operations))]
        if are_erased != [op.erased is not UNSET for op in event.ops]:
            raise ValueError("every operation needs a salt, unless it is erased")
    return LogEntry(
        seq=event.seq,
        kind=event.kind,
        event_id=event.id,
        device=None if event.device is UNSET else event.device,
        received_at=parse_time(event.received_at),
        collections=None if apart.has_body else sorted({op.collection for op in event.ops}),
        state=state,
        salt=salt,
        ops_hash=apart.ops_hash(salt),
    )


def short_form(state: bytes) -> bytes:
    """Returns the bytes of the short form of a changeset's event, which is sent only to the device
    that made the changeset. As this device already has the operations, the short form leaves them
    out.

    The short form is a JSON object with the members of the event's header. If operations have a
    `local_id`, the member `ids` contains their computed ids. If operations were erased, the member
    `erased` contains their positions, because the device may not know of the erasure yet.
    """
    header = proofs.header_of(state)
    if b'"local_id":' not in state and b'"erased":' not in state:
        return header + b"}"
    ops = _decode(state).ops
    ids, erased = local_ids(ops), [n for n, op in enumerate(ops) if op.erased is not UNSET]
    body = b',"ids":%b' % _encode(ids) if ids else b""
    if erased:
        body += b',"erased":%b' % _encode(erased)
    return header + body + b"}"
