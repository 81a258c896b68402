"""Defines upcasts: functions that convert a stored event from one version of its format to the
next.

The stored bytes of an event stay unchanged for ever. When a kind of event gets a new version, its
older events are converted while they are read, one version after the other. The rest of the code
knows only the newest version of each kind. CONTRIBUTING.md lists the other steps for a new version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .events import Event, decode_event
from .json_reader import decode_value

#: Converts an event's document from one version of its kind to the next.
Upcast = Callable[[dict[str, Any]], dict[str, Any]]

#: (kind, version) -> the upcast to the next version. All kinds are still in version 1.
UPCASTS: Mapping[tuple[str, int], Upcast] = {}


class UnknownForm(ValueError):
    """Raised for an event in an unknown format, which a newer version of Foldlog wrote."""


class Upcaster:
    """Converts stored events to the newest version of their kind. The topic of an event,
    `<kind>/<version>`, tells its version."""

    def __init__(self, upcasts: Mapping[tuple[str, int], Upcast] = UPCASTS):
        self._upcasts = upcasts
        self._newest: dict[str, int] = {}
        for kind, version in sorted(upcasts):
            if version != self.newest(kind):
                raise ValueError(f"no upcast leads from {kind}/{self.newest(kind)} to {version}")
            self._newest[kind] = version + 1

    def newest(self, kind: str) -> int:
        return self._newest.get(kind, 1)

    def topic_of(self, kind: str) -> str:
        """Returns the topic for a new event of this kind, such as `changeset/1`."""
        return f"{kind}/{self.newest(kind)}"

    def upcast(self, topic: str, state: bytes) -> bytes:
        """Returns the bytes of an event in the newest version of its kind. An event of the newest
        version is returned unchanged.

        Raises `UnknownForm` if a newer Foldlog wrote the event.
        """
        kind, _, number = topic.rpartition("/")
        version = int(number) if number.isdecimal() else 0
        newest = self.newest(kind)
        if not kind or not 1 <= version <= newest:
            raise UnknownForm(
                f"a newer version of Foldlog wrote this event: unknown form {topic!r}"
            )
        if version == newest:
            return state
        document = decode_value(state)
        for number_of_form in range(version, newest):
            document = self._upcasts[kind, number_of_form](document)
        return msgspec.json.encode(document)

    def decode(self, topic: str, state: bytes) -> Event:
        """Converts an event to the newest version of its kind and decodes it. Raises `UnknownForm`
        if a newer Foldlog wrote the event."""
        return decode_event(self.upcast(topic, state))


UPCASTER = Upcaster()
