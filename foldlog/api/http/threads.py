"""Runs blocking functions in threads, and shares the threads fairly among callers.

A function that waits for the database or takes long to compute would block the event loop, so it
runs in a thread. There are separate threads for reads, for access checks and readiness, and for
compression, so one kind of work cannot delay another.
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
    """A pool of `size` threads for the requests of one event loop. If there are several threads,
    the calls of a single caller use at most `size - 1` of them at a time, so that one thread is
    left for other callers."""

    def __init__(self, size: int, name: str):
        self.size = size
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(size)

    def close(self) -> None:
        """Waits until all running functions have ended, and then ends the threads."""
        self._executor.shutdown()

    @property
    def load(self) -> int:
        """Returns the number of calls that run in a thread or wait for one."""
        return self._queue.busy + len(self._queue)

    async def run(
        self,
        key: str,
        function: Callable[..., T],
        *args: Any,
        seconds_max: float | None = None,
        runs_to_end: bool = False,
        abandoned: Callable[[], asyncio.Future[Any]] | None = None,
    ) -> T:
        """Runs `function(*args)` in a thread and returns its result. `key` identifies the caller
        for whom the function runs, because the threads are shared fairly among callers.

        By default, `seconds_max` limits the wait for a thread and the run of the function together.
        With `runs_to_end`, it limits only the wait for a thread; once the function has begun, the
        method waits until it ends. Use `runs_to_end` for a function that changes data, because the
        caller must learn whether the change happened. If `seconds_max` is `None`, the limit is
        `RUN_SECONDS_MAX`.

        `abandoned` is a function that returns a future, which is done when the client has
        disconnected. It is called only if the call has to wait for a thread.

        Raises `StorageUnavailable` if the time limit is exceeded. Raises `Disconnected` if the
        client disconnects while the call waits for a thread. An exception of `function` is raised
        unchanged.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (RUN_SECONDS_MAX if seconds_max is None else seconds_max)
        if not self._queue.reserve(key):
            await self._wait_for_thread(key, deadline, abandoned)
        # The copied context carries the request's id into log lines of the thread.
        context = contextvars.copy_context()
        future = self._executor.submit(context.run, function, *args)
        running = asyncio.wrap_future(future)
        try:
            left = None if runs_to_end else max(0.0, deadline - loop.time())
            await asyncio.wait((running,), timeout=left)
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
