"""Lets reads wait until the master table includes a given seq, so that a client can read its own
writes.

While a request waits, only the position of the projection is read, in one query for all requests
that wait for the same space. The page of records is read when the position has reached the seq.
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
    """Runs reads of the master table. If the master table lacks the events up to the requested seq,
    it waits for them and repeats the read."""

    def __init__(self, master: History, limits: Limits):
        self._master = master
        self._seconds_max = limits.at_least_wait_seconds_max
        #: by space, as long as a request waits for the space
        self._looks: WeakValueDictionary[SpaceId, _Look] = WeakValueDictionary()

    async def __call__(self, request: Request, space: SpaceId, read: Callable[[], T]) -> T:
        """Calls `read` in a thread. If it raises `ProjectionBehind` for a requested seq, waits for
        that seq and calls `read` again.

        Raises the errors of `read`, `RateLimited` if the client has too many waiting requests, and
        the errors of `Access.admit`.
        """
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
        """Waits until the projection has reached the seq `awaited`, and returns `True`.

        Returns `False` if the longest wait is over, the projection is halted, the client has
        disconnected, or the service stops.
        """
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
        """Returns the latest known position of the projection. Reads it again if the last read is
        older than `LOOK_SECONDS`.

        Returns `None` until the first read of the position has ended.
        """
        now = time.monotonic()
        if now - look.began_at >= LOOK_SECONDS:
            look.began_at = now  # requests that come meanwhile share this look
            look.found = await request.run(self._master.position, space)
        return look.found


class _Look:
    """The latest read of the position of one space's projection: when it began, and its result."""

    def __init__(self) -> None:
        self.began_at = -math.inf
        self.found: Projected | None = None
