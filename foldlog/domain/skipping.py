"""Skips an event at which the fold fails.

An admin appends an `event-skipped` event, which names the bad event. From then on, every fold
treats the bad event as if its list of operations were empty. The bad event stays in the log and in
all proofs. If clients cannot decode its bytes, they receive an empty event instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from .events import EVENT_SKIPPED, Envelope, LogEntry, body_entry, decode_event


class _Body(msgspec.Struct, omit_defaults=True):
    """The body of an `event-skipped` event. The members are stored in the order of this class, so
    this order must never change."""

    seq: int
    reason: str
    by: str | None = None


class Skipped(NamedTuple):
    """An event that every fold skips. Contains its seq, and the seq of the `event-skipped` event
    that names it."""

    seq: int
    by_seq: int


def event_skipped_entry(
    envelope: Envelope, skipped: int, *, reason: str, by: str | None
) -> LogEntry:
    """Makes the `event-skipped` event that tells every fold to skip the event `skipped`, with the
    reason and the name of the admin."""
    return body_entry(envelope, EVENT_SKIPPED, _Body(skipped, reason, by))


def is_readable(seq: int, state: bytes) -> bool:
    """Returns whether the bytes of a skipped event can be sent to readers: they must decode to an
    event with this seq and consist of a single line.

    An event that was written directly to the database, past the service, may be invalid JSON. Such
    an event would make its whole page unreadable and stop the reader.
    """
    try:
        return decode_event(state).seq == seq and len(state.splitlines()) == 1
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False


def skips_of(entries: Iterable[LogEntry]) -> list[Skipped]:
    """Returns a list with a `Skipped` for each `event-skipped` event among these log entries.
    Entries of other kinds are ignored."""
    found = []
    for entry in entries:
        if entry.kind == EVENT_SKIPPED:
            skipped = decode_event(entry.state).skipped_seq
            assert skipped is not None
            found.append(Skipped(skipped, entry.seq))
    return found
