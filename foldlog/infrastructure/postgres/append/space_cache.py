"""Caches the states of the spaces to which this process has recently appended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foldlog.domain.events import LogEntry
from foldlog.domain.space_state import SpaceState

from .eviction import evict_oldest

#: limit of the cached spaces
SPACES_MAX = 1_000
#: limit of the cached counters of one space
DEVICES_MAX = 10_000
#: An older state is loaded again, mainly to read the database's clock again.
AGE_SECONDS_MAX = 60.0


class DatabaseClock(NamedTuple):
    """Computes the database's current time without a query.

    The time was read from the database once. This class adds the time that has passed since then on
    this process's monotonic clock.
    """

    offset_ms: float

    @classmethod
    def set_to(cls, now_ms: int) -> DatabaseClock:
        """Returns a clock whose current time is `now_ms` (ms since 1970)."""
        return cls(now_ms - time.monotonic() * 1000)

    def now_ms(self) -> int:
        """Returns the estimated current time of the database, in ms since 1970."""
        return int(time.monotonic() * 1000 + self.offset_ms)


@dataclass(slots=True)
class CachedSpace:
    """The state of a space after the last append by this process, and a clock.

    The clock computes the database's time without a query.

    Other processes may have appended later, so the state may be outdated.
    """

    state: SpaceState
    clock: DatabaseClock
    expires_at: float  #: on the monotonic clock

    def advance(self, entries: Sequence[LogEntry], counters: Mapping[str, int]) -> None:
        """Updates the cached state after `entries` were appended to the space.

        `counters` contains the new counter of each pushing device. If the state then contains the
        counters of more than `DEVICES_MAX` devices, only the counters in `counters` are kept.
        """
        self.state.advance(entries, counters)
        if len(self.state.counters) > DEVICES_MAX:
            self.state.counters = dict(counters)


class SpaceCache:
    """Caches the state of each space to which this process appends.

    A cached state becomes wrong when another process appends to the space. Therefore use it only
    for an append whose statement checks that the log, the head and the mark of the space are
    unchanged.
    """

    def __init__(self) -> None:
        self._spaces: dict[str, CachedSpace] = {}

    def get(self, space: str) -> CachedSpace | None:
        """Returns the cached state of a space, or `None` if it is missing or has expired."""
        cached = self._spaces.get(space)
        if cached is None or time.monotonic() > cached.expires_at:
            return None
        return cached

    def put(self, space: str, state: SpaceState, clock: DatabaseClock) -> None:
        evict_oldest(self._spaces, SPACES_MAX)
        self._spaces[space] = CachedSpace(state, clock, time.monotonic() + AGE_SECONDS_MAX)

    def drop(self, space: str) -> None:
        self._spaces.pop(space, None)
