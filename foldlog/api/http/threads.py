"""Runs blocking calls in threads, which callers share fairly.

A call that waits for the database or takes long to compute runs in a thread, because it would block
the event loop. Each kind of work has its own threads: reads cannot delay access checks and
readiness, and compression delays only other compression.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.fairness import FairQueue

T = TypeVar("T")

ADMISSION_THREADS = 3
COMPRESSION_THREADS = 2
#: The time for a call to wait for a thread and to run there, in seconds. The timeouts of the
#: database are shorter, so a call that takes longer has spent this time waiting for a thread.
RUN_SECONDS_MAX = 10.0


class Disconnected(ConnectionError):
    """The client disconnected while its request waited."""


class FairThreads:
    """A pool of threads for one event loop. One caller can use at most all threads but one, so a
    thread is left for others."""

    def __init__(self, size: int, name: str):
        self.size = size
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(size)

    def close(self) -> None:
        """Waits until all running calls have ended, and ends the threads."""
        self._executor.shutdown()

    @property
    def load(self) -> int:
        """The number of calls that run or wait for a thread."""
        return self._queue.busy + len(self._queue)

    async def run(
        self,
        key: str,
        function: Callable[..., T],
        *args: Any,
        seconds_max: float | None = None,
        abandoned: Callable[[], asyncio.Future[Any]] | None = None,
    ) -> T:
        """Runs `function(*args)` in a thread and returns its result. `key` identifies the caller,
        for the fair share.

        `abandoned` must return a future that is done when the client has disconnected; it is called
        only if all threads are busy. Raises the exception of `function`. Raises
        `StorageUnavailable` if the call takes longer than `seconds_max` seconds (by default
        `RUN_SECONDS_MAX`), and `Disconnected` if the client disconnects while the call waits for a
        thread.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (RUN_SECONDS_MAX if seconds_max is None else seconds_max)
        if not self._queue.take(key):
            await self._wait_for_thread(key, deadline, abandoned)
        # The copied context carries the request's id into log lines of the thread.
        context = contextvars.copy_context()
        future = self._executor.submit(context.run, function, *args)
        running = asyncio.wrap_future(future)
        try:
            await asyncio.wait((running,), timeout=max(0.0, deadline - loop.time()))
        finally:
            if running.done():
                self._release(key)
            else:  # the thread stays in use until the function returns
                future.add_done_callback(lambda _: self._release_from_thread(loop, key))
        if not running.done():
            running.cancel()
            raise StorageUnavailable
        try:
            return running.result()
        finally:
            # An exception refers to this frame, and the frame to the exception through `running`.
            # The deletion breaks this cycle, which would keep the request's body in memory until
            # the next garbage collection.
            del running, future

    async def _wait_for_thread(
        self, key: str, deadline: float, abandoned: Callable[[], asyncio.Future[Any]] | None
    ) -> None:
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        self._queue.put(key, granted)
        self._grant()
        if granted.done():
            return
        gone = None if abandoned is None else abandoned()
        awaited = {granted} if gone is None else {granted, gone}
        try:
            await asyncio.wait(
                awaited, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            self._leave_queue(key, granted)
            raise
        if gone is not None and gone.done():
            self._leave_queue(key, granted)
            raise Disconnected
        if not granted.done():
            self._leave_queue(key, granted)
            raise StorageUnavailable("too many calls wait for a thread")

    def _leave_queue(self, key: str, granted: asyncio.Future[None]) -> None:
        if granted.done():
            self._release(key)
        else:
            self._queue.remove(key, granted)

    def _grant(self) -> None:
        while (found := self._queue.next()) is not None:
            found[1].set_result(None)

    def _release(self, key: str) -> None:
        self._queue.done(key)
        self._grant()

    def _release_from_thread(self, loop: asyncio.AbstractEventLoop, key: str) -> None:
        with suppress(RuntimeError):  # the loop is closed, so no call waits
            loop.call_soon_threadsafe(self._release, key)
