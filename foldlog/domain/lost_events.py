"""Makes the events that take the place of lost ones.

If events are missing in a log, an admin declares a fork. An event of the kind `event-lost` then
takes the place of each missing event, so that the seqs are dense again and the loss stays visible.
It changes no record.
"""

from __future__ import annotations

import msgspec

from .events import Envelope, LogEntry, body_entry

EVENT_LOST = "event-lost"


class EventLost(msgspec.Struct):
    """The body of an `event-lost` event. The stored form of this struct must never change."""

    reason: str


def event_lost_entry(envelope: Envelope, reason: str) -> LogEntry:
    """Makes the `event-lost` event that takes the place of a missing event. `reason` tells when the
    loss was noticed."""
    return body_entry(envelope, EVENT_LOST, EventLost(reason))
