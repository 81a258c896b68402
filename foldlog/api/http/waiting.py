"""Reads that wait until the master table contains what they ask for: read your own writes.

While a request waits, only the projection's position is looked at, with one look for all requests
that wait for a space. The page itself is read once, when the position has been reached.
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

#: A request's pause between looks, in seconds: the first one, and the longest one.
PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX = 0.005, 0.1
#: the shortest time between two looks at a space, in seconds, however many requests wait
LOOK_SECONDS = 0.01


class ProjectedReads:
    """Runs reads of the master table, and repeats a read once the projection has caught up."""

    def __init__(self, master: History, limits: Limits):
        self._master = master
        self._seconds_max = limits.at_least_wait_seconds_max
        #: by space, as long as a request waits for the space
        self._looks: WeakValueDictionary[SpaceId, _Look] = WeakValueDictionary()

    async def __call__(self, request: Request, space: SpaceId, read: Callable[[], T]) -> T:
        """Raises the errors of `read`, `RateLimited`, and the errors of `Access.admit`."""
        try:
            return await request.run(read)
        except ProjectionBehind as exc:
            if exc.awaited is None:
                raise
            with request.hold():
                if not await self._is_reached(request, space, exc.awaited):
                    raise
        await request.readmit()
        return await request.run(read)

    async def _is_reached(self, request: Request, space: SpaceId, awaited: int) -> bool:
        """Returns `False` after the longest wait, if the projection is halted, if the client has
        disconnected, and if the service stops."""
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
        """Returns the latest position that a look has found; `None` before the first look ends."""
        now = time.monotonic()
        if now - look.began_at >= LOOK_SECONDS:
            look.began_at = now  # requests that come meanwhile share this look
            look.found = await request.run(self._master.position, space)
        return look.found


class _Look:
    """The latest look at the position of a space."""

    def __init__(self) -> None:
        self.began_at = -math.inf
        self.found: Projected | None = None
