"""The state of a space that an append reads and moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .collections import Schemas
from .events import LogEntry


@dataclass(slots=True)
class SpaceState:
    """A space at the head of its log.

    Every member moves with the head, in the same transaction. Two states of one log with the same
    head and mark are therefore equal, except that `counters` and `revoked` may cover only the
    devices that were loaded.
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
        """Returns the time of the next event. The times of a log are monotonic."""
        return max(self.received_at, now_ms)

    def advance(self, entries: Sequence[LogEntry], counters: Mapping[str, int]) -> None:
        """Moves the head to the last of `entries`, which were appended with these counters."""
        if entries:
            last = entries[-1]
            self.head, self.mark, self.received_at = last.seq, last.mark, last.received_at
            self.counters |= counters
