"""Descriptions and formats of the members of responses, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from .fields import MARK_PATTERN


def described(text: str = "", **keywords: Any) -> msgspec.Meta:
    """A description, and further keywords of JSON Schema."""
    return msgspec.Meta(description=text or None, extra_json_schema=keywords)


def seq_meta(text: str = "") -> msgspec.Meta:
    """The seq of an event: 1 or more."""
    return described(text, minimum=1)


def uuid_meta(text: str = "") -> msgspec.Meta:
    return described(text, format="uuid")


def time_meta(text: str) -> msgspec.Meta:
    return described(text, format="date-time")


def mark_meta(text: str) -> msgspec.Meta:
    return described(text, pattern=MARK_PATTERN)


class Shape(NamedTuple):
    """A struct in the document: its component's name, its description, and its members.

    A `Meta` describes a member. A type replaces the type of a member that is always present.
    """

    name: str
    about: str
    members: dict[str, Any] = {}


LOG = uuid_meta("The id of this log. A different id means that history forked.")
HEAD = described("The seq of the last event of the log.")
PROJECTED = described("The seq at which this response is true.")
CURSOR = described("The cursor of the next page; null at the end.")
LOCAL_IDS = described("{collection: {the device's own key: the record's id}}")
DEVICE = uuid_meta()
RECEIVED_AT = time_meta("The server's clock.")
MADE_AT = time_meta("The device's clock: a claim.")
