"""Defines the state of a space, which each append to the log of the space reads and changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .collections import Schemas
from .events import LogEntry


@dataclass(slots=True)
class SpaceState:
    """The state of a space at the head of its log.

    All members are changed in the same transaction as the head. Two states of the same log with the
    same head and mark therefore have equal members, except `counters` and `revoked`. These two
    contain only the devices that were needed when the state was loaded.
    """

    log: str  #: the id of the log
    head: int = 0  #: the seq of the last event
    mark: str = ""  #: the mark of the last event
    received_at: int = 0  #: of the last event, in ms since 1970
    erased_seq: int = 0  #: of the last `record-erased` event
    counters: dict[str, int] = field(default_factory=dict)  #: last counter by device
    revoked: set[str] = field(default_factory=set)  #: devices
    schemas: Schemas = field(default_factory=dict)  #: by defined collection

    def next_received_at(self, now_ms: int) -> int:
        """Returns the time for the next event, in ms since 1970: `now_ms`, or the time of the last
        event if that is later."""
        return max(self.received_at, now_ms)

    def advance(self, entries: Sequence[LogEntry], counters: Mapping[str, int]) -> None:
        """Updates the state after an append. `entries` are the appended events, and `counters` are
        the new counters of the devices that pushed them."""
        if entries:
            last = entries[-1]
            self.head, self.mark, self.received_at = last.seq, last.mark, last.received_at
            self.counters |= counters
