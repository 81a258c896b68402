"""Checks operations and changesets at the call, by the rules of the service. A changeset that is
accepted offline is then not refused for its size when the user is gone.
"""

from __future__ import annotations

import gzip

import msgspec

from foldlog.client.errors import LimitExceeded, NotARecord
from foldlog.domain import errors
from foldlog.domain.changesets import Operation, check_operation
from foldlog.domain.json_reader import values_max_in
from foldlog.domain.limits import Limits
from foldlog.domain.merge import RECORD_SIZE_MAX, Conflict

from .cures import reason

#: more than the members of a request, and of a stored event, besides the operations. A refusal in a
#: stored event has a text of a few hundred bytes.
ENVELOPE_BYTES = 4_096
#: more than the commas and brackets of a request besides those of the operations
ENVELOPE_VALUES = 100
_encode = msgspec.json.encode
_decode_operation = msgspec.json.Decoder(Operation).decode


class Size(msgspec.Struct):
    """The size of a changeset as the limits of the service count it."""

    operations: int = 0
    json_bytes: int = 0  #: of the operations as JSON
    values: int = 0  #: a bound of the values in this JSON, as `values_max_in` counts them

    def plus(self, encoded: bytes) -> Size:
        """Returns the size of the changeset with one more operation."""
        return Size(
            self.operations + 1,
            self.json_bytes + len(encoded) + 1,
            self.values + values_max_in(encoded) + 1,
        )


def checked(op: Operation, limits: Limits) -> tuple[Operation, bytes]:
    """Checks an operation, and returns a copy of the operation and its JSON. The copy was decoded
    from the JSON, so it has the values that the device later receives from the server.

    Raises `LimitExceeded` if the operation is over a limit, and `NotARecord` if it has a value that
    JSON cannot express. The message names the field and the cure.
    """
    try:
        check_operation(op, limits)
        encoded = _encode(op)
        return _decode_operation(encoded), encoded
    except errors.LimitExceeded as exc:
        limit, value = exc.extra["limit"], exc.extra["value"]
        raise LimitExceeded(limit, value, reason(op, limits)) from exc
    except (errors.InvalidRequest, UnicodeEncodeError, TypeError) as exc:
        raise NotARecord(reason(op, limits) or str(exc)) from exc


def check_size(size: Size, op: Operation, limits: Limits) -> None:
    """Raises `LimitExceeded` if a changeset is too large for any request. `size` is the size of the
    changeset after its last operation, `op`.
    """
    for limit, found, unit in (
        ("operations_per_changeset_max", size.operations, "operations"),
        ("operations_per_push_max", size.operations, "operations"),
        ("event_bytes_max", size.json_bytes + ENVELOPE_BYTES, "bytes"),
        ("inflated_bytes_max", size.json_bytes + ENVELOPE_BYTES, "bytes"),
        ("values_per_body_max", size.values + ENVELOPE_VALUES, "values"),
    ):
        most: int = getattr(limits, limit)
        if found > most:
            raise LimitExceeded(limit, most, _too_large(size, op, f"{found} {unit}"))


def check_compressed(size: Size, ops: list[Operation], limits: Limits) -> None:
    """Raises `LimitExceeded` if a changeset is too large for a request after its compression. An
    operator may set this limit far below the size of an event, so that only compression helps.
    """
    if size.json_bytes + ENVELOPE_BYTES <= limits.body_bytes_max:
        return
    sent = len(gzip.compress(_encode(ops), 6, mtime=0)) + ENVELOPE_BYTES
    if sent > limits.body_bytes_max:
        text = _too_large(size, ops[-1], f"{sent} compressed bytes")
        raise LimitExceeded("body_bytes_max", limits.body_bytes_max, text)


def check_merged(conflicts: list[Conflict]) -> None:
    """Raises `LimitExceeded` if an operation would make its record too large. The fold would leave
    the record as it is. `conflicts` are the conflicts of the operation on the record as it is here.
    """
    for conflict in conflicts:
        if conflict.rule == "too-large":
            raise LimitExceeded(
                "record_size_max",
                RECORD_SIZE_MAX,
                f"the record {conflict.collection}/{conflict.id} would become too large with "
                f"`{conflict.field}`: store large values in a record of their own",
            )


def _too_large(size: Size, op: Operation, found: str) -> str:
    if size.operations > 1:
        return (
            f"the changeset would have {found}: use several `changeset` blocks, or `create_many`, "
            "`update_many` and `delete_many`"
        )
    fields = op.fields or {}
    largest = max(fields, key=lambda name: len(_encode(fields[name])), default="")
    return (
        f"the change of {op.collection}/{op.id} has {found}, most of them in `{largest}`: store "
        "this value in parts, or store a file and its address"
    )
