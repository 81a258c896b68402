"""A changeset: the operations that one device made together, as it arrives on the wire.

Format: DESIGN section 2. Decoding is strict: what is not understood is named, never ignored.
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

from .errors import InvalidChangeset, InvalidRequest, LimitExceeded
from .limits import INTEGER_MAX, Limits
from .names import id_of_local, is_collection, is_record_id, is_uuid
from .times import Moment, to_ms
from .values import OverLimit, check_value, is_number, same

Key = tuple[str, str]  #: (collection, id)

#: {collection: {local id: id}}. A device's own keys are unique in a collection, not beyond it.
LocalIds = dict[str, dict[str, str]]


# JSON has no cycles, so the garbage collector need not look for any in what is decoded from it.
class Operation(msgspec.Struct, omit_defaults=True, gc=False):
    """One edit of one record. The order of these members is the order in the stored bytes."""

    op: Literal["put", "add", "delete"]
    collection: str
    id: str | UnsetType = UNSET
    #: the device's own key; `id` follows from it
    local_id: str | UnsetType = UNSET
    #: `put`: the new values. `add`: the numbers to add
    fields: dict[str, Any] | UnsetType = UNSET
    #: `put`: names of fields to remove
    unset: list[str] | UnsetType = UNSET
    #: refuse unless the record's seq is this one (0: no such record)
    if_seq: int | UnsetType = UNSET
    #: refuse unless these fields have these values now (None: no such record)
    expect: dict[str, Any] | UnsetType | None = UNSET
    #: what is left of an erased operation: its commitment. Only in the log, never on the way in
    erased: str | UnsetType = UNSET

    @property
    def key(self) -> Key:
        """(collection, id): the record that this operation edits, once `id` is resolved."""
        assert self.id is not UNSET
        return self.collection, self.id

    @property
    def is_guarded(self) -> bool:
        return self.if_seq is not UNSET or self.expect is not UNSET

    def same_as(self, other: Operation) -> bool:
        """Equal as values. `local_id` is only another way to write `id`."""
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
    """An operation as a device sends it."""


class Changeset(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What one device changed at one go, named by an id that it saved before sending."""

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
    """One request's changesets. All of them are of one device, in the order it made them."""

    device: str
    sent_at: datetime
    changesets: list[Changeset]
    #: the cursor of a push that also pulls; checked before anything is stored
    after: int | None = None
    mark: str | None = None
    #: answer each changeset with the records that it touched, as they are after it
    wants_records: bool = False
    #: of the body that it came in; what it weighs in a group commit
    body_bytes: int = 0

    @property
    def sent_at_ms(self) -> int:
        return to_ms(self.sent_at)


MESSAGE_LENGTH_MAX = 300

_decode = msgspec.json.Decoder(list[Changeset], strict=True).decode
_PATH_INDEX = re.compile(r"\$\[(\d+)\]")


def decode_changesets(raw: bytes | msgspec.Raw, device: str, limits: Limits) -> list[Changeset]:
    """Reads the `changesets` of a push; each `local_id` is resolved to its `id`.

    Raises `InvalidChangeset` or `LimitExceeded`, with `index` and, where it can be told,
    `pointer` (RFC 6901, relative to the array); `InvalidRequest` for what is not JSON at all;
    `LimitExceeded` without an index for what is too much, but might pass in smaller pushes.
    """
    try:
        changesets = _decode(raw)
    except msgspec.ValidationError as exc:
        # From the right: the message may quote a name that the sender chose.
        message, _, path = str(exc).rpartition(" - at `")
        found = _PATH_INDEX.match(path)
        if found is None:
            raise InvalidRequest("the changesets of a push are an array") from exc
        where = {"index": int(found[1]), "pointer": _pointer(path)}
        # ... and however long that name is, it is not told back whole.
        raise InvalidChangeset((message or path)[:MESSAGE_LENGTH_MAX], **where) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        text = bytes(raw)
        check_searchable(text, limits)
        deep = deep_item(text)
        if deep is not None:
            where = {"index": deep, "pointer": f"/{deep}"}
            too_deep = "nested too deeply"
            raise LimitExceeded("nesting_max", limits.nesting_max, too_deep, **where) from exc
        index = _index_of_unreadable(text)
        if index is None:
            raise InvalidRequest(_UNREADABLE) from exc
        raise InvalidChangeset(_UNREADABLE, index=index, pointer=f"/{index}") from exc
    if len(changesets) > limits.changesets_per_push_max:
        raise LimitExceeded("changesets_per_push_max", limits.changesets_per_push_max)
    if sum(len(changeset.ops) for changeset in changesets) > limits.operations_per_push_max:
        raise LimitExceeded("operations_per_push_max", limits.operations_per_push_max)
    for index, changeset in enumerate(changesets):
        try:
            _check(changeset, device, limits)
        except _At as exc:
            where = {"index": index, "pointer": f"/{index}{exc.pointer}"}
            raise _refusal(exc, limits, **where) from exc.__cause__
        except LimitExceeded as exc:
            exc.extra["index"] = index
            raise
    return changesets


class _At(ValueError):
    """What is wrong, and where in the changeset; over which limit it is, if it is over one."""

    def __init__(self, pointer: str, message: str, limit: str | None = None):
        super().__init__(message)
        self.pointer = pointer
        self.limit = limit


def _refusal(found: _At, limits: Limits, **where: Any) -> InvalidChangeset | LimitExceeded:
    if found.limit is None:
        return InvalidChangeset(str(found), **where)
    return LimitExceeded(found.limit, getattr(limits, found.limit), str(found), **where)


def _pointer(path: str) -> str:
    """`$[3].ops[0].fields` as the JSON pointer `/3/ops/0/fields`; `[...]` is a name not told."""
    told, _, _ = path.partition("[...]")
    return "".join(f"/{part}" for part in re.findall(r"[^$.\[\]`]+", told))


#: No JSON reader of ours goes deeper than some hundred; and none that we know refuses so few.
_DEPTH_READ = 200
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{},]', re.DOTALL)


def check_searchable(raw: bytes | bytearray, limits: Limits) -> None:
    """Raises `LimitExceeded` for what is unreadable and too large to be searched for why.

    A smaller push is the cure: of a few changesets, or of one alone, it is known which one it is.
    """
    if len(raw) > limits.unreadable_bytes_max:
        raise LimitExceeded("unreadable_bytes_max", limits.unreadable_bytes_max, _UNREADABLE)


def array_in(body: bytes | bytearray, member: bytes) -> bytes | bytearray | None:
    """The bytes of the array that is this member of an object, however wrong they are otherwise.

    Goes over brackets and texts alone. One that does not end was cut on the way.
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
    """Which item of an array is too deep to be read: readers give up there without a place."""
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
    """Which changeset cannot be read as JSON, if the array as such can be told apart.

    Slow, and only for what has failed: a device must know which one to set aside. A lone surrogate
    comes easily (half an emoji, cut by a program), and would block its queue for ever.
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
            # More lenient than our reader: it finds the end also of what we cannot read.
            _, end = json.JSONDecoder().raw_decode(text, at)
        except RecursionError:
            return index
        except ValueError:
            return None
        try:
            msgspec.json.decode(text[at:end].encode("utf-8", "surrogateescape"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return index
        at = skip_space(end)
        if text[at : at + 1] != ",":
            break
    return None


def _check(changeset: Changeset, device: str, limits: Limits) -> None:
    if not is_uuid(changeset.id):
        raise _At("/id", "the id of a changeset is a UUID in lower case")
    if not 0 <= changeset.base <= INTEGER_MAX:
        raise _At("/base", "a base is a seq, or 0")
    if changeset.counter is not UNSET and not 1 <= changeset.counter <= INTEGER_MAX:
        raise _At("/counter", "counters are 1, 2, 3 ...")
    try:
        to_ms(changeset.made_at)
    except ValueError as exc:
        raise _At("/made_at", str(exc)) from exc
    if not changeset.ops:
        raise _At("/ops", "a changeset has at least one operation")
    if len(changeset.ops) > limits.operations_per_changeset_max:
        raise LimitExceeded("operations_per_changeset_max", limits.operations_per_changeset_max)
    for number, op in enumerate(changeset.ops):
        try:
            _check_operation(op, limits)
        except _At as exc:
            raise _At(f"/ops/{number}{exc.pointer}", str(exc), exc.limit) from exc.__cause__
        if op.local_id is not UNSET:
            op.id = id_of_local(device, op.collection, op.local_id)


def check_operation(op: Operation, limits: Limits) -> None:
    """What `decode_changesets` checks, for an operation that was made here.

    Raises `InvalidChangeset` or `LimitExceeded`.
    """
    try:
        _check_operation(op, limits)
    except _At as exc:
        raise _refusal(exc, limits, pointer=exc.pointer) from exc


#: Which members each operation may have, besides those that name and guard a record.
_MEMBERS = {"put": {"fields", "unset"}, "add": {"fields"}, "delete": set[str]()}


def _check_operation(op: Operation, limits: Limits) -> None:
    if not is_collection(op.collection):
        raise _At("/collection", "a collection is named by 1-64 of A-Z a-z 0-9 - _ .")
    named = op.id if op.local_id is UNSET else op.local_id
    if named is UNSET or (op.id is not UNSET and op.local_id is not UNSET):
        raise _At("", "an operation names its record by either id or local_id")
    if not is_record_id(named):
        raise _At(
            "/id" if op.local_id is UNSET else "/local_id",
            "an id is 1-128 characters without NUL",
        )
    for member in ("fields", "unset"):
        if getattr(op, member) is not UNSET and member not in _MEMBERS[op.op]:
            raise _At(f"/{member}", f"{op.op} has no {member}")
    if op.erased is not UNSET:
        raise _At("/erased", "only the log marks an operation as erased")
    if op.if_seq is not UNSET and not 0 <= op.if_seq <= INTEGER_MAX:
        raise _At("/if_seq", "if_seq is a seq, or 0")
    if op.op == "put" and op.fields is UNSET:
        op.fields = {}
    if op.fields is not UNSET:
        _check_fields("/fields", op.fields, limits)
    if op.expect is not UNSET and op.expect is not None:
        _check_fields("/expect", op.expect, limits)
    if op.unset is not UNSET:
        _check_names("/unset", op.unset, limits)
        if op.fields is not UNSET and not op.fields.keys().isdisjoint(op.unset):
            raise _At("/unset", "a field is either set or unset")
    if op.op == "add":
        if not op.fields:
            raise _At("/fields", "add names at least one field and its number")
        for name, value in op.fields.items():
            if not is_number(value):
                raise _At(f"/fields/{_escaped(name)}", "add takes numbers")


def _check_fields(pointer: str, fields: dict[str, Any], limits: Limits) -> None:
    _check_names(pointer, fields, limits)
    for name, value in fields.items():
        try:
            check_value(value, limits.nesting_max)
        except ValueError as exc:
            limit = exc.limit if isinstance(exc, OverLimit) else None
            raise _At(f"{pointer}/{_escaped(name)}", str(exc), limit) from exc


def _check_names(pointer: str, names: Iterable[str], limits: Limits) -> None:
    if len(list(names)) > limits.fields_per_operation_max:
        raise LimitExceeded("fields_per_operation_max", limits.fields_per_operation_max)
    for name in names:
        if len(name) > limits.field_name_length_max:
            raise LimitExceeded("field_name_length_max", limits.field_name_length_max)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class Content(Protocol):
    """What a changeset says, apart from how it came: an event has it too."""

    @property
    def ops(self) -> Sequence[Operation]: ...
    @property
    def made_at_ms(self) -> int: ...
    @property
    def guard(self) -> str | UnsetType: ...


def same_content(changeset: Changeset, stored: Content) -> bool:
    """Whether a changeset that came again is the one that came first.

    Content is `ops`, `made_at` and `guard`, compared as values; `base`, `counter` and the device
    may change when a device heals. An event with an erased operation is compared by id alone.
    """
    if any(op.erased is not UNSET for op in stored.ops):
        return True
    return (
        changeset.made_at_ms == stored.made_at_ms
        and changeset.guard == stored.guard
        and len(changeset.ops) == len(stored.ops)
        and all(a.same_as(b) for a, b in zip(changeset.ops, stored.ops, strict=True))
    )


def local_ids(ops: Iterable[Operation]) -> LocalIds:
    """The ids of the records that these operations named by the device's own keys."""
    found: LocalIds = {}
    for op in ops:
        if op.local_id is not UNSET:
            assert op.id is not UNSET
            found.setdefault(op.collection, {})[op.local_id] = op.id
    return found
