"""Provides functions that describe the members of responses for the OpenAPI document."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from .fields import MARK_PATTERN


def described(text: str = "", **keywords: Any) -> msgspec.Meta:
    """Returns a msgspec `Meta` that describes a member of a response in the OpenAPI document.
    `text` is the description of the member, and `keywords` are other keywords of JSON Schema."""
    return msgspec.Meta(description=text or None, extra_json_schema=keywords)


def seq_meta(text: str = "") -> msgspec.Meta:
    """Returns a msgspec `Meta` that describes, in the OpenAPI document, a member whose value is the
    seq of an event. The minimum of the member is 1."""
    return described(text, minimum=1)


def uuid_meta(text: str = "") -> msgspec.Meta:
    return described(text, format="uuid")


def time_meta(text: str) -> msgspec.Meta:
    return described(text, format="date-time")


def mark_meta(text: str) -> msgspec.Meta:
    return described(text, pattern=MARK_PATTERN)


class Shape(NamedTuple):
    """Describes a struct in the OpenAPI document: the name of its component, the description of the
    struct, and its members.

    `members` maps names of members to a `Meta` or a type. A `Meta` adds a description to the
    member. A type replaces the type that the struct declares, and makes the member required.
    """

    name: str
    about: str
    members: dict[str, Any] = {}


LOG = uuid_meta("The id of this log. A different id means that history forked.")
HEAD = described("The seq of the last event of the log.")
PROJECTED = described("The seq at which this response is true.")
HALTED_AT = described(
    "Only if the projection stands still: the seq of the event that the service cannot process. "
    "Later events are missing in this response, until an operator has repaired the cause."
)
CURSOR = described("The cursor of the next page; null at the end.")
LOCAL_IDS = described("{collection: {the device's own key: the record's id}}")
DEVICE = uuid_meta()
RECEIVED_AT = time_meta("The server's clock.")
MADE_AT = time_meta("The device's clock: a claim.")
