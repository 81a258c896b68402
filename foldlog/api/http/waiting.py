"""Lets a read wait until the master table includes the event with a given seq, so that a client can
read its own writes. Without a seq, a read waits for the head of the log, so that a client reads
what was acknowledged to other devices.

A projection applies the events of the log to the master table. Its position is the seq of the last
event that it has applied. While requests wait, the service reads only this position, with one query
for all waiting requests of the same space. When the position has reached the seq that a request
asks for, the service reads the records for this request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from foldlog.domain.errors import ProjectionBehind, RateLimited
from foldlog.domain.limits import Limits
from foldlog.domain.ports import AtLeast, History, Projected, SpaceId

from .requests import Request

T = TypeVar("T")

#: A request's pause between looks, in seconds: the first one, and the longest one.
PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX = 0.005, 0.1
#: the shortest time between two looks at a space, in seconds, however many requests wait
LOOK_SECONDS = 0.01


class ProjectedReads:
    """Runs reads of the master table. A request asks for a seq that the master table must include,
    or for the head of the log. If the first read finds that the master table lacks this seq, the
    request waits until the master table includes the seq, and then reads a second time."""

    def __init__(self, master: History, limits: Limits):
        self._master = master
        self._limits = limits
        #: by space, as long as a request waits for the space
        self._looks: WeakValueDictionary[SpaceId, _Look] = WeakValueDictionary()

    async def __call__(
        self, request: Request, space: SpaceId, read: Callable[[AtLeast], T], at_least: AtLeast
    ) -> T:
        """Calls `read(at_least)` in a thread and returns its result. If `read` raises
        `ProjectionBehind` because the master table does not yet include the seq that the request
        asks for, the method waits for that seq and then calls `read` again.

        An `at_least` of `None` asks for the head of the log. Such a read waits for
        `head_wait_seconds_max` at most, and then reads what is there.

        Raises `RateLimited` if the client has too many waiting requests and open streams. Raises
        the errors of `Access.admit` if the caller has lost access during the wait. Raises
        `ProjectionBehind` if the wait ends before the master table includes the seq. None of these
        waits is needed for the head, so a read of the head raises only the errors of `readmit`.
        Other errors of `read` are raised unchanged.
        """
        try:
            return await request.run(read, at_least)
        except ProjectionBehind as exc:
            if exc.awaited is None:
                raise
            is_reached = await self._wait(request, space, exc.awaited, at_least)
            if not is_reached and at_least is not None:
                raise
        await request.readmit()
        return await request.run(read, at_least or 0)

    async def _wait(
        self, request: Request, space: SpaceId, awaited: int, at_least: AtLeast
    ) -> bool:
        """Waits until the projection has reached the seq `awaited`, as one of the client's waiting
        requests. Returns whether the projection has reached the seq."""
        try:
            lease = request.hold()
        except RateLimited:
            if at_least is None:
                return False  # the client did not ask for a wait
            raise
        limits = self._limits
        seconds_max = limits.at_least_wait_seconds_max
        if at_least is None:
            seconds_max = limits.head_wait_seconds_max
        with lease:
            return await self._is_reached(request, space, awaited, seconds_max)

    async def _is_reached(
        self, request: Request, space: SpaceId, awaited: int, seconds_max: int
    ) -> bool:
        """Waits until the projection has reached the seq `awaited`, and returns `True`.

        Returns `False` if `seconds_max` are over, the projection is halted, the client has
        disconnected, or the service is stopping.
        """
        deadline = time.monotonic() + seconds_max
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
        """Returns the progress of the space's projection as a `Projected`.

        If the latest read of the progress began less than `LOOK_SECONDS` ago, the method returns
        the progress that `look` contains. Otherwise it reads the progress from the database.
        Returns `None` if another request has begun the first read, and this read is still running.
        """
        now = time.monotonic()
        if now - look.began_at >= LOOK_SECONDS:
            look.began_at = now  # requests that come meanwhile share this look
            look.found = await request.run(self._master.position, space)
        return look.found


class _Look:
    """Holds the latest read of the position of one space's projection: the time at which the read
    began, and its result."""

    def __init__(self) -> None:
        self.began_at = -math.inf
        self.found: Projected | None = None
