"""Events in the form that they were stored in, and in the form that the code of today reads.

An event's bytes are never rewritten. When a kind gets a new form, what was written before is
brought to it while it is read, one version after the other, by a function of the table below. So
the rest of the code knows one form of each kind, the newest. CONTRIBUTING.md says what
else a new form needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .events import Event, decode_event

#: From an event's document in one version of its kind's form to the next.
Upcast = Callable[[dict[str, Any]], dict[str, Any]]

#: (kind, version) -> what makes the next version of it. Every kind is still in its first.
UPCASTS: Mapping[tuple[str, int], Upcast] = {}


class UnknownForm(ValueError):
    """A newer Foldlog wrote this event."""


class Upcaster:
    """Topics are `<kind>/<version of the stored form>`."""

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
        """Of what is written now."""
        return f"{kind}/{self.newest(kind)}"

    def upcast(self, topic: str, state: bytes) -> bytes:
        """An event as it would be written today; its own bytes if that is what it is.

        Raises `UnknownForm`.
        """
        kind, _, number = topic.rpartition("/")
        version = int(number) if number.isdecimal() else 0
        newest = self.newest(kind)
        if not kind or not 1 <= version <= newest:
            raise UnknownForm(f"an event of the unknown form {topic!r}: a newer version wrote it")
        if version == newest:
            return state
        document = msgspec.json.decode(state)
        for number_of_form in range(version, newest):
            document = self._upcasts[kind, number_of_form](document)
        return msgspec.json.encode(document)

    def decode(self, topic: str, state: bytes) -> Event:
        """Raises `UnknownForm`."""
        return decode_event(self.upcast(topic, state))


UPCASTER = Upcaster()
