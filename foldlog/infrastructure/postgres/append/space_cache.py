"""The states of the spaces that this process appended to last."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foldlog.domain.events import LogEntry
from foldlog.domain.space_state import SpaceState

from .eviction import evict_oldest

SPACES_MAX = 1_000
#: counters of one space
DEVICES_MAX = 10_000
#: An older state is loaded again, mainly to read the database's clock again.
AGE_SECONDS_MAX = 60.0


class DatabaseClock(NamedTuple):
    """The clock of the database, kept going by this process's monotonic clock."""

    offset_ms: float

    @classmethod
    def set_to(cls, now_ms: int) -> DatabaseClock:
        return cls(now_ms - time.monotonic() * 1000)

    def now_ms(self) -> int:
        return int(time.monotonic() * 1000 + self.offset_ms)


@dataclass(slots=True)
class CachedSpace:
    """The state of a space after this process's last append to it."""

    state: SpaceState
    clock: DatabaseClock
    expires_at: float  #: on the monotonic clock

    def advance(self, entries: Sequence[LogEntry], counters: Mapping[str, int]) -> None:
        """Moves the state over an append, and bounds its counters."""
        self.state.advance(entries, counters)
        if len(self.state.counters) > DEVICES_MAX:
            self.state.counters = dict(counters)


class SpaceCache:
    """Cached states by space.

    A state is stale as soon as another process appends, so it serves only appends that are
    conditional on its log, head and mark.
    """

    def __init__(self) -> None:
        self._spaces: dict[str, CachedSpace] = {}

    def get(self, space: str) -> CachedSpace | None:
        cached = self._spaces.get(space)
        if cached is None or time.monotonic() > cached.expires_at:
            return None
        return cached

    def put(self, space: str, state: SpaceState, clock: DatabaseClock) -> None:
        evict_oldest(self._spaces, SPACES_MAX)
        self._spaces[space] = CachedSpace(state, clock, time.monotonic() + AGE_SECONDS_MAX)

    def drop(self, space: str) -> None:
        self._spaces.pop(space, None)
