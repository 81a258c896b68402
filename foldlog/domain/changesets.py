"""Decodes and checks the changesets in the JSON of a push. A changeset contains the operations that
one device made together.

The format is described in docs/reference/protocol.md. The decoder is strict: for an unknown or
invalid member it raises an error that names the place of the member.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count
from typing import Any, Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from .errors import MESSAGE_LENGTH_MAX, InvalidChangeset, InvalidRequest, LimitExceeded
from .json_pointers import escaped
from .json_reader import decode_value, decoder
from .limits import INTEGER_MAX, LIMITS, Limits
from .names import id_of_local, is_collection, is_record_id, is_uuid
from .step_budget import Steps
from .times import TIME_FORM, Moment, to_ms
from .values import OverLimit, check_value, is_number, same

Key = tuple[str, str]  #: (collection, id)

#: {collection: {local id: id}}. A device's own key is unique only within its collection.
LocalIds = dict[str, dict[str, str]]


# Decoded JSON has no reference cycles, so the garbage collector can leave it out (`gc=False`).
class Operation(msgspec.Struct, omit_defaults=True, gc=False):
    """One edit of one record. The log stores the members in the order of this class."""

    op: Literal["put", "add", "delete"]
    collection: str
    id: str | UnsetType = UNSET
    #: the device's own key; `id` is derived from it
    local_id: str | UnsetType = UNSET
    #: `put`: the new values. `add`: the numbers to add
    fields: dict[str, Any] | UnsetType = UNSET
    #: `put`: names of fields to remove
    unset: list[str] | UnsetType = UNSET
    #: a guard: the record's seq must be this one (0: the record must be missing)
    if_seq: int | UnsetType = UNSET
    #: a guard: these fields must have these values (None: the record must be missing)
    expect: dict[str, Any] | UnsetType | None = UNSET
    #: the commitment of an erased operation; only the log has it, a device must leave it out
    erased: str | UnsetType = UNSET

    @property
    def key(self) -> Key:
        """Returns the (collection, id) of the edited record. If the operation has a `local_id`, its
        `id` must have been computed before."""
        assert self.id is not UNSET
        return self.collection, self.id

    @property
    def is_guarded(self) -> bool:
        return self.if_seq is not UNSET or self.expect is not UNSET

    def same_as(self, other: Operation) -> bool:
        """Returns whether both operations have equal content. `local_id` is ignored, because `id`
        is computed from it."""
        return (
            self.op == other.op
            and self.collection == other.collection
            and self.id == other.id
            and same(self.fields, other.fields)
            and self.unset == other.unset
            and self.if_seq == other.if_seq
            and same(self.expect, other.expect)
        )


class WireOperation(Operation, forbid_unknown_fields=True):
    """An operation as a device sends it. Decoding this class fails for an unknown member, while
    decoding `Operation` ignores unknown members."""


class Changeset(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The operations that a device made together. The device chose the id and saved it before
    sending the changeset."""

    id: str
    base: int
    made_at: Moment
    ops: list[WireOperation]
    counter: int | UnsetType = UNSET
    guard: Literal["unchanged"] | UnsetType = UNSET

    @property
    def made_at_ms(self) -> int:
        return to_ms(self.made_at)

    @property
    def is_guarded(self) -> bool:
        return self.guard is not UNSET or any(op.is_guarded for op in self.ops)


class Push(msgspec.Struct):
    """The changesets that one request pushes. All come from one device, in the order in which the
    device made them."""

    device: str
    sent_at: datetime
    changesets: list[Changeset]
    #: the cursor of a push that also pulls; checked before the push is stored
    after: int | None = None
    mark: str | None = None
    #: answer each changeset with the records that it touched, as they are after it
    wants_records: bool = False
    #: the size of the request's body; group commit counts it
    body_bytes: int = 0
    #: the memory of `collections.changeset_needs_records`: by index, the schemas and the answer
    asked: dict[int, tuple[tuple[Any, ...], bool]] = msgspec.field(default_factory=dict)
    #: the steps that these questions may take
    steps: Steps = msgspec.field(default_factory=lambda: Steps(LIMITS.schema_steps_per_push_max))

    @property
    def sent_at_ms(self) -> int:
        return to_ms(self.sent_at)


_decode = decoder(list[Changeset]).decode
_PATH_INDEX = re.compile(r"\$\[(\d+)\]")


def decode_changesets(raw: bytes | msgspec.Raw, device: str, limits: Limits) -> list[Changeset]:
    """Decodes the member `changesets` of a push, and computes the `id` of each operation that has a
    `local_id`.

    Raises `InvalidChangeset` if a changeset is invalid, and `LimitExceeded` if a changeset exceeds
    a limit. Both errors have the `index` of the changeset and, if possible, a `pointer` (RFC 6901,
    relative to the array) to the bad member. Raises `InvalidRequest` if the text is invalid JSON
    and the bad changeset cannot be found. Raises `LimitExceeded` without an `index` if all
    changesets together are too large; the device can then send them in smaller pushes.
    """
    try:
        changesets = _decode(raw)
    except msgspec.ValidationError as exc:
        raise _invalid_member(exc) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _unreadable(bytes(raw), limits) from exc
    if len(changesets) > limits.changesets_per_push_max:
        raise LimitExceeded("changesets_per_push_max", limits.changesets_per_push_max)
    if sum(len(changeset.ops) for changeset in changesets) > limits.operations_per_push_max:
        raise LimitExceeded("operations_per_push_max", limits.operations_per_push_max)
    for index, changeset in enumerate(changesets):
        try:
            _check(changeset, device, limits)
        except _Invalid as exc:
            where = {"index": index, "pointer": f"/{index}{exc.pointer}"}
            raise _refusal(exc, limits, **where) from exc.__cause__
        except LimitExceeded as exc:
            exc.extra["index"] = index
            raise
    return changesets


#: the message of msgspec for a text that is no time
_BAD_TIME = "Invalid RFC3339 encoded datetime"


def _invalid_member(exc: msgspec.ValidationError) -> InvalidRequest:
    # Split at the last separator, because the message may quote a name that the sender chose.
    message, _, path = str(exc).rpartition(" - at `")
    found = _PATH_INDEX.match(path)
    if found is None:
        return InvalidRequest("the changesets of a push must be an array")
    # The name can be of any length, so the message is cut.
    text = (message or path)[:MESSAGE_LENGTH_MAX]
    if message == _BAD_TIME:
        text = f"must be {TIME_FORM}"
    return InvalidChangeset(text, index=int(found[1]), pointer=_pointer(path))


def _unreadable(text: bytes, limits: Limits) -> InvalidRequest:
    """Makes the error for a text that is invalid JSON, and returns it for the caller to raise. The
    error contains the index of the bad changeset if the index can be found.

    Raises `LimitExceeded` if the text is too large for this search.
    """
    check_searchable(text, limits)
    deep = deep_item(text)
    if deep is not None:
        where = {"index": deep, "pointer": f"/{deep}"}
        return LimitExceeded("nesting_max", limits.nesting_max, "nested too deeply", **where)
    index = _index_of_unreadable(text)
    if index is None:
        return InvalidRequest(_UNREADABLE)
    return InvalidChangeset(_UNREADABLE, index=index, pointer=f"/{index}")


class _Invalid(ValueError):
    """Raised if a changeset is invalid. Contains the reason, a JSON pointer to the invalid place
    and, if a limit was exceeded, the name of the limit."""

    def __init__(self, pointer: str, message: str, limit: str | None = None):
        super().__init__(message)
        self.pointer = pointer
        self.limit = limit


def _refusal(found: _Invalid, limits: Limits, **where: Any) -> InvalidChangeset | LimitExceeded:
    if found.limit is None:
        return InvalidChangeset(str(found), **where)
    return LimitExceeded(found.limit, getattr(limits, found.limit), str(found), **where)


def _pointer(path: str) -> str:
    """Converts the path in an error message of msgspec, such as `$[3].ops[0].fields`, to a JSON
    pointer, such as `/3/ops/0/fields`.

    In such a path, msgspec writes `[...]` in place of a key of a dict. The pointer ends before the
    first `[...]`, because the key is unknown.
    """
    known, _, _ = path.partition("[...]")
    return "".join(f"/{part}" for part in re.findall(r"[^$.\[\]`]+", known))


#: All our JSON readers stop at a depth of some hundreds; 200 is below the smallest of their limits.
_DEPTH_READ = 200
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{},]', re.DOTALL)


def check_searchable(raw: bytes | bytearray, limits: Limits) -> None:
    """Raises `LimitExceeded` if `raw` is larger than `unreadable_bytes_max`. `raw` is a body that
    could not be decoded. The server searches only smaller bodies for the bad changeset, because the
    search is slow.

    After this error, the device can send smaller pushes to find the bad changeset.
    """
    if len(raw) > limits.unreadable_bytes_max:
        raise LimitExceeded("unreadable_bytes_max", limits.unreadable_bytes_max, _UNREADABLE)


def array_in(body: bytes | bytearray, member: bytes) -> bytes | bytearray | None:
    """Returns the bytes of the array that is the value of `member` in the JSON object `body`.
    Returns `None` if the array is missing or cut off.

    The array may contain invalid JSON, because this function reads only brackets and strings.
    """
    depth, start = 0, None
    name = None  # of the last member of the object
    for found in _TOKENS.finditer(body):
        token = found[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth == 2 and token == b"[" and name == member:
                start = found.start()
        elif token in (b"]", b"}"):
            depth -= 1
            if depth == 1 and start is not None:
                return body[start : found.end()]
        elif depth == 1:
            name = None if token == b"," else name or token
    return None


def deep_item(raw: bytes | bytearray) -> int | None:
    """Returns the index of the first item of a JSON array that is nested too deeply to be decoded,
    or `None`. This function exists because JSON readers fail at such an item and do not report its
    index."""
    depth, index = 0, 0
    for found in _TOKENS.finditer(raw):
        token = found[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > _DEPTH_READ:
                return index
        elif token in (b"]", b"}"):
            depth -= 1
        elif token == b",":
            index += depth == 1
    return None


_UNREADABLE = "not JSON (RFC 8259) in UTF-8, or nested too deeply"
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def _index_of_unreadable(raw: bytes) -> int | None:
    """Returns the index of the changeset that is invalid JSON, or `None` if it cannot be found.

    The device needs the index to remove this changeset from its queue. Otherwise the device would
    send the same invalid push for ever, and its later changesets would never be stored. The usual
    cause is half a surrogate pair (an emoji that a program cut in two). The search is slow, so it
    runs only after decoding has failed.
    """

    def skip_space(at: int) -> int:
        found = _JSON_SPACE.match(text, at)
        assert found is not None
        return found.end()

    text = raw.decode("utf-8", "surrogateescape")
    at = skip_space(0)
    if text[at : at + 1] != "[":
        return None
    for index in count():
        at = skip_space(at + 1)
        try:
            # Python's reader is more lenient than msgspec, so it finds the end of an invalid item.
            _, end = json.JSONDecoder().raw_decode(text, at)
        except RecursionError:
            return index
        except ValueError:
            return None
        try:
            decode_value(text[at:end].encode("utf-8", "surrogateescape"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return index
        at = skip_space(end)
        if text[at : at + 1] != ",":
            break
    return None


def _check(changeset: Changeset, device: str, limits: Limits) -> None:
    if not is_uuid(changeset.id):
        raise _Invalid("/id", "the id of a changeset must be a UUID in lower case")
    if not 0 <= changeset.base <= INTEGER_MAX:
        raise _Invalid("/base", "a base must be a seq, or 0")
    if changeset.counter is not UNSET and not 1 <= changeset.counter <= INTEGER_MAX:
        raise _Invalid("/counter", "counters are 1, 2, 3 ...")
    try:
        to_ms(changeset.made_at)
    except ValueError as exc:
        raise _Invalid("/made_at", str(exc)) from exc
    if not changeset.ops:
        raise _Invalid("/ops", "a changeset must have at least one operation")
    if len(changeset.ops) > limits.operations_per_changeset_max:
        raise LimitExceeded("operations_per_changeset_max", limits.operations_per_changeset_max)
    for number, op in enumerate(changeset.ops):
        try:
            _check_operation(op, limits)
        except _Invalid as exc:
            raise _Invalid(f"/ops/{number}{exc.pointer}", str(exc), exc.limit) from exc.__cause__
        if op.local_id is not UNSET:
            op.id = id_of_local(device, op.collection, op.local_id)


def check_operation(op: Operation, limits: Limits) -> None:
    """Checks an operation before it is sent, by the same rules as `decode_changesets`.

    Raises `LimitExceeded` if the operation exceeds a limit, and `InvalidChangeset` if it is invalid
    for another reason.
    """
    try:
        _check_operation(op, limits)
    except _Invalid as exc:
        raise _refusal(exc, limits, pointer=exc.pointer) from exc


#: The members of each operation, besides those that name or guard a record.
_MEMBERS = {"put": {"fields", "unset"}, "add": {"fields"}, "delete": set[str]()}


def _check_operation(op: Operation, limits: Limits) -> None:
    _check_key(op)
    for member in ("fields", "unset"):
        if getattr(op, member) is not UNSET and member not in _MEMBERS[op.op]:
            raise _Invalid(f"/{member}", f"{op.op} has no {member}")
    if op.erased is not UNSET:
        raise _Invalid("/erased", "only the log may mark an operation as erased")
    if op.if_seq is not UNSET and not 0 <= op.if_seq <= INTEGER_MAX:
        raise _Invalid("/if_seq", "if_seq must be a seq, or 0")
    if op.op == "put" and op.fields is UNSET:
        op.fields = {}
    if op.fields is not UNSET:
        _check_fields("/fields", op.fields, limits)
    if op.expect is not UNSET and op.expect is not None:
        _check_fields("/expect", op.expect, limits)
    if op.unset is not UNSET:
        _check_names("/unset", op.unset, limits)
        if op.fields is not UNSET and not op.fields.keys().isdisjoint(op.unset):
            raise _Invalid("/unset", "a field must be either set or unset")
    if op.op == "add":
        _check_numbers(op.fields)


def _check_key(op: Operation) -> None:
    if not is_collection(op.collection):
        raise _Invalid("/collection", "a collection's name must be 1-64 of A-Z a-z 0-9 - _ .")
    id = op.id if op.local_id is UNSET else op.local_id
    if id is UNSET or (op.id is not UNSET and op.local_id is not UNSET):
        raise _Invalid("", "an operation must name its record by either id or local_id")
    if not is_record_id(id):
        pointer = "/id" if op.local_id is UNSET else "/local_id"
        raise _Invalid(pointer, "an id must be 1-128 characters without NUL")


def _check_numbers(fields: dict[str, Any] | UnsetType) -> None:
    if not fields:
        raise _Invalid("/fields", "add must name at least one field and its number")
    for name, value in fields.items():
        if not is_number(value):
            raise _Invalid(f"/fields/{escaped(name)}", "add takes numbers")


def _check_fields(pointer: str, fields: dict[str, Any], limits: Limits) -> None:
    _check_names(pointer, fields, limits)
    for name, value in fields.items():
        try:
            check_value(value, limits.nesting_max)
        except ValueError as exc:
            limit = exc.limit if isinstance(exc, OverLimit) else None
            raise _Invalid(f"{pointer}/{escaped(name)}", str(exc), limit) from exc


def _check_names(pointer: str, names: Iterable[str], limits: Limits) -> None:
    if len(list(names)) > limits.fields_per_operation_max:
        raise LimitExceeded("fields_per_operation_max", limits.fields_per_operation_max)
    for name in names:
        if len(name) > limits.field_name_length_max:
            raise LimitExceeded("field_name_length_max", limits.field_name_length_max)


class Content(Protocol):
    """The members that `same_content` compares. A received changeset and a stored event both have
    these members."""

    @property
    def ops(self) -> Sequence[Operation]: ...
    @property
    def guard(self) -> str | UnsetType: ...


def same_content(changeset: Changeset, stored: Content) -> bool:
    """Returns whether a repeated changeset has the same content as the stored changeset with the
    same id.

    Compared are `ops` and `guard`. `base`, `counter` and the device's id are ignored, because a
    device that recovers from an error, such as `device-forked`, may send the same changeset again
    with other values of these members. `made_at` is ignored, because a client may make the request
    anew with a fresh clock; the time of the stored changeset stands. If an operation of the stored
    changeset was erased, the function returns true, because the erased values can no longer be
    compared.
    """
    if any(op.erased is not UNSET for op in stored.ops):
        return True
    return (
        changeset.guard == stored.guard
        and len(changeset.ops) == len(stored.ops)
        and all(a.same_as(b) for a, b in zip(changeset.ops, stored.ops, strict=True))
    )


def local_ids(ops: Iterable[Operation]) -> LocalIds:
    """Returns the local ids in these operations and the ids computed from them, as a dict
    {collection: {local id: id}}. Operations without a `local_id` are skipped."""
    found: LocalIds = {}
    for op in ops:
        if op.local_id is not UNSET:
            assert op.id is not UNSET
            found.setdefault(op.collection, {})[op.local_id] = op.id
    return found
