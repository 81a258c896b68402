"""Defines the answers to questions about the past: the state of a space at any moment, all versions
of a record, and the differences between two moments.

A record has one version for each event that touched it. The state of a record at seq N is its last
version up to N. Later events therefore never change an answer about the past.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from .errors import InvalidRequest
from .json_reader import decoder
from .merge import RecordView
from .proofs import header_of
from .values import ABSENT, same

Fields = dict[str, Any]
Order = Literal["oldest", "newest"]


class Point(NamedTuple):
    """A moment in a log: directly after event `seq`, or directly after the last event that the
    server received up to `time`.

    `time` is in ms since 1970. If both are `None`, the moment is now: the end of the log.
    """

    seq: int | None = None
    time: int | None = None


NOW = Point()


class EventHead(msgspec.Struct):
    """The members of an event's header that name the author and the times of the event."""

    seq: int
    id: str
    received_at: str
    device: str | None = None
    made_at: str | UnsetType = UNSET


_decode_head = msgspec.json.Decoder(EventHead).decode
#: The maximum size of a header, so that these first bytes of an event contain all of it.
HEAD_BYTES_MAX = 1_024


def head_of(state: bytes) -> EventHead:
    """Decodes the header of an event and returns it as an `EventHead`. `state` contains the stored
    bytes of the event, or at least the first `HEAD_BYTES_MAX` of them."""
    return _decode_head(header_of(state) + b"}")


class Change(msgspec.Struct, rename={"from_": "from"}):
    """The change of one field from the old value `from_` to the new value `to`. `from_` is `UNSET`
    if the field was missing before, and `to` is `UNSET` if the field is missing afterwards."""

    from_: Any = UNSET
    to: Any = UNSET


def changes(before: Fields, after: Fields) -> dict[str, Change]:
    """Returns a dict from the name of each field whose value differs to a `Change` with the old and
    the new value. The fields of `before` come first, in their order. The fields that are only in
    `after` come next."""
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
    """A version of a record, as the history of the record shows it.

    `lost` lists all conflicts that were decided at this event, each as JSON. In some of them the
    value of this event lost, in others it won.
    """

    seq: int
    changeset: str
    device: str | None
    made_at: str | UnsetType  #: a claim by the device's clock
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
    """A record that differs between two moments. `before` or `after` is `None` if the record was
    missing or deleted at that moment."""

    collection: str
    id: str
    before: RecordView | None
    after: RecordView | None
    changed: dict[str, Change]


_decode_fields = decoder(Fields).decode


def difference(before: RecordView | None, after: RecordView | None) -> Difference | None:
    """Compares the states of a record at two moments, and returns a `Difference`. A deleted record
    is treated like a missing one.

    Returns `None` if the record is missing at both moments. Also returns `None` if it is live at
    both moments and its fields are equal.
    """
    was, now = _if_live(before), _if_live(after)
    either = now or was
    if either is None:
        return None
    changed = changes(_fields_of(was), _fields_of(now))
    if was and now and not changed:
        return None
    return Difference(either.collection, either.id, was, now, changed)


def _if_live(view: RecordView | None) -> RecordView | None:
    return None if view is None or view.is_deleted else view


def _fields_of(view: RecordView | None) -> Fields:
    if view is None:
        return {}
    return _decode_fields(view.fields) if isinstance(view.fields, msgspec.Raw) else view.fields


class DiffCursor(NamedTuple):
    """The position at which the next page of a list of differences starts: after the record with
    this collection and id, at event `seq`.

    The list is ordered by the seq of the last event up to `to` that touched the record.
    """

    start: int
    to: int
    seq: int
    collection: str = ""
    id: str = ""


def check_moments(start: int, to: int) -> None:
    """Raises `InvalidRequest` if the seq `start` is higher than the seq `to`."""
    if start > to:
        raise InvalidRequest(
            f"`from` is {start}, after `to`, which is {to}",
            errors=[{"parameter": "from", "detail": "must not be after `to`"}],
        )


def check_cursor_moment(asked: Point, begun: int) -> int:
    """Checks that the request for the next page of a list asks for the same moment as the earlier
    pages. `begun` is the seq of this moment. `asked` may also lack a seq. Returns `begun`.

    Raises `InvalidRequest` if `asked` has another seq.
    """
    if asked.seq not in (None, begun):
        raise InvalidRequest("this cursor belongs to another moment")
    return begun
