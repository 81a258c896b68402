"""Lets requests wait on the event loop for new events in the log of a space.

All requests that wait for new events of the same space share one watch of the event store. The
store therefore has at most one watch for each space, even with ten thousand waiting clients.
"""

from __future__ import annotations

import asyncio

from foldlog.domain.ports import EventStore


class LogWatches:
    """Contains the watches of one event loop. While one or more requests wait for new events of a
    space, there is exactly one watch of the event store for this space."""

    def __init__(self) -> None:
        self._spaces: dict[str, _SpaceWatch] = {}
        self.is_ending = False

    def join(self, store: EventStore, space: str, watch: LogWatch) -> _SpaceWatch:
        joined = self._spaces.get(space)
        if joined is None:
            joined = self._spaces[space] = _SpaceWatch(store, space)
        joined.watches.add(watch)
        return joined

    def leave(self, joined: _SpaceWatch, watch: LogWatch) -> None:
        joined.watches.discard(watch)
        if not joined.watches:
            joined.unwatch()
            del self._spaces[joined.space]

    def end(self) -> None:
        """Wakes all requests that wait for new events, and makes these requests and all streams
        end. The service calls this method when it stops."""
        self.is_ending = True
        for joined in self._spaces.values():
            joined.wake()


class _SpaceWatch:
    """Watches the log of one space for all requests that wait for new events of this space."""

    def __init__(self, store: EventStore, space: str):
        self.space = space
        self.watches: set[LogWatch] = set()
        self.version = 0
        self._loop = asyncio.get_running_loop()
        self._is_scheduled = False
        self.unwatch = store.watch(space, self._grown)

    def _grown(self) -> None:
        """Schedules the wake-up of all requests that wait for new events of this space. The event
        store calls it from any thread when the log has new events.

        If a wake-up is already scheduled, the call does nothing.
        """
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._wake_scheduled)

    def _wake_scheduled(self) -> None:
        self._is_scheduled = False
        self.wake()

    def wake(self) -> None:
        self.version += 1
        for watch in list(self.watches):
            watch.wake()


class LogWatch:
    """Lets one request wait for new events in the log of a space.

    Create the watch before you read the log. The watch then also notices the events that are added
    while you read the log: the next call of `wait` returns at once. Call `close` at the end.
    `disconnected` is a future that is done when the client has disconnected.
    """

    def __init__(
        self,
        watches: LogWatches,
        store: EventStore,
        space: str,
        disconnected: asyncio.Future[None],
    ):
        self._watches = watches
        self._joined = watches.join(store, space, self)
        self._seen = self._joined.version
        self._waiting: asyncio.Future[None] | None = None
        self._disconnected = disconnected
        disconnected.add_done_callback(self._wake)

    async def wait(self, seconds: float) -> bool:
        """Waits for new events for at most `seconds`. Returns `True` if the log may have new events
        since the previous call, otherwise `False`.

        If the client disconnects or the service stops, the method returns before `seconds` are
        over.
        """
        if self._seen == self._joined.version and not self.is_over and seconds > 0:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(seconds, self.wake)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        has_grown = self._seen != self._joined.version
        self._seen = self._joined.version
        return has_grown

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _wake(self, _: asyncio.Future[None]) -> None:
        self.wake()

    @property
    def is_over(self) -> bool:
        """True if the request must stop waiting, because the client has disconnected or the service
        stops."""
        return self._disconnected.done() or self._watches.is_ending

    def close(self) -> None:
        self._disconnected.remove_done_callback(self._wake)
        self._watches.leave(self._joined, self)

    def __enter__(self) -> LogWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
