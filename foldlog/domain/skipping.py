"""Stepping over an event that the fold cannot process.

An admin says so in an event, `event-skipped`, and from then on the event that it names is folded as
if it had no operations, whenever and by whomever the log is folded. It stays in the log, and in
every proof, as it is; readers that could not read it are given an event that says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from .events import EVENT_SKIPPED, Envelope, LogEntry, body_entry, decode_event


class _Body(msgspec.Struct, omit_defaults=True):
    """The order of these members is the order in the stored bytes."""

    seq: int
    reason: str
    by: str | None = None


class Skipped(NamedTuple):
    """An event that was stepped over, and the event that says so."""

    seq: int
    by_seq: int


def event_skipped_entry(
    envelope: Envelope, skipped: int, *, reason: str, by: str | None
) -> LogEntry:
    """The event that says that another one is skipped, and why."""
    return body_entry(envelope, EVENT_SKIPPED, _Body(skipped, reason, by))


def is_readable(seq: int, state: bytes) -> bool:
    """Whether bytes that are stepped over can be given to readers, among events and on a line.

    What was written past the service need be no JSON, and one such event would make a page
    unreadable, and its reader stand still.
    """
    try:
        return decode_event(state).seq == seq and len(state.splitlines()) == 1
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False


def skips_of(entries: Iterable[LogEntry]) -> list[Skipped]:
    """What is stepped over by these."""
    found = []
    for entry in entries:
        if entry.kind == EVENT_SKIPPED:
            skipped = decode_event(entry.state).skipped_seq
            assert skipped is not None
            found.append(Skipped(skipped, entry.seq))
    return found
