"""Reads that wait until the master table has come to what they ask for: read your own writes.

A page is read when there is something to read, and not at each look: while it is waited for, the
position alone is looked at, once for all who wait for a space. Whoever waits must leave threads
for everybody else: on the event loop no thread is held, and of Flask's no more than a few.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from foldlog.domain.errors import ProjectionBehind
from foldlog.domain.limits import Limits
from foldlog.domain.ports import History, Projected, SpaceId

from .requests import Request

T = TypeVar("T")

#: How long somebody sleeps between looks: first, and at most.
PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX = 0.005, 0.1
#: between two looks at a space, however many wait for it
LOOK_SECONDS = 0.01


class ProjectedReads:
    """Calls reads of the master table, and again when it has come so far."""

    def __init__(self, master: History, limits: Limits):
        self._master = master
        self._seconds_max = limits.at_least_wait_seconds_max
        #: of the spaces that somebody waits for
        self._looks: WeakValueDictionary[SpaceId, _Look] = WeakValueDictionary()

    async def __call__(self, request: Request, space: SpaceId, read: Callable[[], T]) -> T:
        """Raises what `read` raises, `RateLimited`, and what `Access.admit` raises."""
        try:
            return await request.run(read)
        except ProjectionBehind as exc:
            if exc.awaited is None:
                raise
            with request.rates.hold(request), request.place_to_wait() as has_place:
                if not has_place or not await self._is_reached(request, space, exc.awaited):
                    raise
        await request.readmit()
        return await request.run(read)

    async def _is_reached(self, request: Request, space: SpaceId, awaited: int) -> bool:
        """False when the time is over, the projection has stopped, or the service stops."""
        deadline = time.monotonic() + self._seconds_max
        pause = PAUSE_SECONDS_FIRST
        look = self._looks.setdefault(space, _Look())
        while True:
            projected = await self._look(request, space, look)
            if projected is not None and projected.position >= awaited:
                return True
            if projected is not None and projected.is_halted:
                return False
            if time.monotonic() > deadline or not await request.pause(pause):
                return False
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _look(self, request: Request, space: SpaceId, look: _Look) -> Projected | None:
        """What was found last; `None` while somebody looks for the first time."""
        now = time.monotonic()
        if now - look.began_at >= LOOK_SECONDS:
            look.began_at = now  # whoever comes meanwhile has what this one finds
            look.found = await request.run(self._master.position, space)
        return look.found


class _Look:
    """At the position of a space."""

    def __init__(self) -> None:
        self.began_at = -math.inf
        self.found: Projected | None = None
