"""Skipping an event that the fold cannot process.

An admin appends an `event-skipped` event. From then on, every fold treats the event that it names
as if it had no operations. The skipped event stays in the log and in all proofs. If readers
could not decode it, they receive an empty event in its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from .events import EVENT_SKIPPED, Envelope, LogEntry, body_entry, decode_event


class _Body(msgspec.Struct, omit_defaults=True):
    """The order of the members is the order of the stored bytes."""

    seq: int
    reason: str
    by: str | None = None


class Skipped(NamedTuple):
    """A skipped event, and the event that skips it."""

    seq: int
    by_seq: int


def event_skipped_entry(
    envelope: Envelope, skipped: int, *, reason: str, by: str | None
) -> LogEntry:
    """The event that records that another one is skipped, and the reason."""
    return body_entry(envelope, EVENT_SKIPPED, _Body(skipped, reason, by))


def is_readable(seq: int, state: bytes) -> bool:
    """Whether the bytes of a skipped event can be sent to readers, among events and on one line.

    An event that was written past the service may be invalid JSON. It would make its whole page
    unreadable, and halt the reader.
    """
    try:
        return decode_event(state).seq == seq and len(state.splitlines()) == 1
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False


def skips_of(entries: Iterable[LogEntry]) -> list[Skipped]:
    """The events that these entries skip."""
    found = []
    for entry in entries:
        if entry.kind == EVENT_SKIPPED:
            skipped = decode_event(entry.state).skipped_seq
            assert skipped is not None
            found.append(Skipped(skipped, entry.seq))
    return found
