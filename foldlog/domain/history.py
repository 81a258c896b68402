"""What was: any moment of a space, every version of a record, what differs between two moments.

A record has a version for each event that touched it. Its state at seq N is its last version up to
N; so no answer here depends on what came later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from .errors import InvalidRequest
from .merge import RecordView
from .proofs import header_of
from .values import ABSENT, same

Fields = dict[str, Any]
Order = Literal["oldest", "newest"]


class Point(NamedTuple):
    """Right after event `seq`; or after the last event received up to `time`, in ms since 1970.

    With neither it is now: the end of the log.
    """

    seq: int | None = None
    time: int | None = None


NOW = Point()


class EventHead(msgspec.Struct):
    """Whose event it was, and when: what its header says of it."""

    seq: int
    id: str
    received_at: str
    device: str | None = None
    made_at: str | UnsetType = UNSET


_decode_head = msgspec.json.Decoder(EventHead).decode
#: A header is shorter than this, so the beginning of an event has all of it.
HEAD_BYTES_MAX = 1_024


def head_of(state: bytes) -> EventHead:
    """Of an event, or of its first `HEAD_BYTES_MAX` bytes."""
    return _decode_head(header_of(state) + b"}")


class Change(msgspec.Struct, rename={"from_": "from"}):
    """What an event made of a field; a side that is not there: the field was, or is, not there."""

    from_: Any = UNSET
    to: Any = UNSET


def changes(before: Fields, after: Fields) -> dict[str, Change]:
    """The fields that differ, by the names' order in `before`, then in `after`."""
    found = {}
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name, ABSENT), after.get(name, ABSENT)
        if not same(was, now):
            found[name] = Change(
                UNSET if was is ABSENT else was,
                UNSET if now is ABSENT else now,
            )
    return found


class VersionView(msgspec.Struct):
    """A version of a record as its history tells it.

    `lost` are the ledger's entries that were decided at this event: what it brought and what lost,
    and what fell to it.
    """

    seq: int
    changeset: str
    device: str | None
    made_at: str | UnsetType  #: by the device's clock, only a claim
    received_at: str
    is_deleted: bool
    changed: dict[str, Change]
    lost: list[msgspec.Raw]


def version_view(
    head: EventHead, is_deleted: bool, before: Fields, after: Fields, lost: Iterable[bytes]
) -> VersionView:
    return VersionView(
        head.seq,
        head.id,
        head.device,
        head.made_at,
        head.received_at,
        is_deleted,
        changes(before, after),
        list(map(msgspec.Raw, lost)),
    )


class Difference(msgspec.Struct):
    """A record that differs at the later moment. `None`: there was none, or it was deleted."""

    collection: str
    id: str
    before: RecordView | None
    after: RecordView | None
    changed: dict[str, Change]


_decode_fields = msgspec.json.Decoder(Fields).decode


def difference(before: RecordView | None, after: RecordView | None) -> Difference | None:
    """`None` if both are live and equal, or neither is."""
    was, now = _if_live(before), _if_live(after)
    told = now or was
    if told is None:
        return None
    changed = changes(_fields_of(was), _fields_of(now))
    if was and now and not changed:
        return None
    return Difference(told.collection, told.id, was, now, changed)


def _if_live(view: RecordView | None) -> RecordView | None:
    return None if view is None or view.is_deleted else view


def _fields_of(view: RecordView | None) -> Fields:
    if view is None:
        return {}
    return _decode_fields(view.fields) if isinstance(view.fields, msgspec.Raw) else view.fields


class DiffCursor(NamedTuple):
    """Where a diff goes on: at event `seq`, of which it has told the records up to this one.

    Each record has its place at the last event up to `to` that touched it.
    """

    start: int
    to: int
    seq: int
    collection: str = ""
    id: str = ""


def check_moments(start: int, to: int) -> None:
    """Raises `InvalidRequest` for a diff that goes back."""
    if start > to:
        raise InvalidRequest(
            f"`from` is {start}, after `to`, which is {to}",
            errors=[{"parameter": "from", "detail": "must not be after `to`"}],
        )


def check_cursor_moment(asked: Point, begun: int) -> int:
    """The seq that a page goes on at. Raises `InvalidRequest` if its cursor is of another one."""
    if asked.seq not in (None, begun):
        raise InvalidRequest("this cursor is of another moment")
    return begun
