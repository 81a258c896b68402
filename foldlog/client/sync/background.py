"""Syncs a replica in a background thread.

The thread syncs after each local change, and applies the pages of the live channel. While the live
channel is closed, the thread polls: each second after activity, and less often when idle. Each
failure in a row doubles the wait before the next try. If the server asks for a longer wait, the
thread waits that long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from foldlog.client.errors import IncompletePage, ServerProblem, Unreachable

from .file_lock import FileLockTaken
from .live import LiveChannel
from .results import SyncResult
from .schedule import POLL_SECONDS_MIN, Schedule

log = logging.getLogger("foldlog")

#: wait after a local change, so that changes made together are sent together
GATHER_SECONDS = 0.02
#: poll interval while the live channel is open, in case the channel fails silently
SAFETY_POLL_SECONDS = 300.0
#: a stream that ends is mostly replaced within this time, which makes a poll unnecessary
RECONNECT_GRACE_SECONDS = 5.0


class BackgroundSync:
    """Runs a thread that calls the function `sync` whenever a sync is due. If `live` is `None`, the
    thread only polls.

    The function `sync` may raise `FileLockTaken` if another process is syncing. The function
    `backoff_seconds` returns the number of seconds that the server's last answer asked the client
    to wait. The function `now` returns the time of a monotonic clock in seconds. Any thread may set
    the event `woken` to end a wait early.
    """

    def __init__(
        self,
        sync: Callable[[], SyncResult],
        backoff_seconds: Callable[[], float],
        now: Callable[[], float],
        woken: Event,
        live: LiveChannel | None,
    ):
        self._sync = sync
        self._backoff_seconds = backoff_seconds
        self._now = now
        self._woken = woken
        self._live = live
        self._is_requested = False
        self._stopping = Event()
        self._thread: Thread | None = None
        self._schedule = Schedule()
        self._poll_at: float | None = None  #: time of the next sync; `None` during a sync
        self._safety_poll_at = 0.0  #: time of the next sync while the live channel is open

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    @property
    def is_live(self) -> bool:
        return self._live is not None and self._live.is_live

    @property
    def next_try_seconds(self) -> float | None:
        """The number of seconds until the next sync; `None` during a sync, or if the thread
        is stopped.
        """
        due_at = self._due_at
        return None if due_at is None else max(0.0, due_at - self._now())

    def start(self) -> None:
        if self._thread is None:
            self._stopping.clear()
            self._thread = Thread(target=self._run, name="foldlog-sync", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops the thread. If the thread is in the middle of a sync, waits until this sync has
        ended.
        """
        if self._thread is not None:
            self._stopping.set()
            self._woken.set()
            self._thread.join()
            if self._live is not None:
                self._live.close()
            self._thread = None
            self._poll_at = None

    def wake(self) -> None:
        """Requests a sync after a local change.

        If the last sync failed, this method does nothing: the next scheduled retry sends
        the change.
        """
        if not self._schedule.is_failing:
            self._is_requested = True
            self._woken.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._poll_at = None
            self._is_requested = False
            wait = self._try()
            self._wait_until_due(self._now() + wait)

    def _try(self) -> float:
        """Syncs once, and returns the number of seconds to wait until the next sync."""
        try:
            result = self._sync()
        except FileLockTaken:
            # The other process may sync without the changes that were just made here.
            self._safety_poll_at = self._now()
            return self._schedule.jittered(POLL_SECONDS_MIN)
        except Exception as exc:
            if not isinstance(exc, ServerProblem | IncompletePage | Unreachable):
                # For example a full disk. The thread survives, and syncs when the disk has space.
                log.exception("syncing failed")
            self._allow_stream_from(None)
            return self._schedule.after_failure(exc)
        backoff = self._backoff_seconds()
        self._allow_stream_from(self._now() + backoff)
        safety = self._schedule.jittered(SAFETY_POLL_SECONDS)
        self._safety_poll_at = self._now() + max(safety, backoff)
        return self._schedule.after_success(result, backoff)

    def _allow_stream_from(self, at: float | None) -> None:
        if self._live is not None:
            self._live.may_connect_from = at

    @property
    def _due_at(self) -> float | None:
        if self._poll_at is not None and self.is_live and not self._schedule.is_failing:
            return max(self._poll_at, self._safety_poll_at)
        return self._poll_at

    def _wait_until_due(self, poll_at: float) -> None:
        """Waits until a sync is due. While it waits, applies the pages of the live channel.

        A sync is due in three cases: the time of the next poll has come, the app has made a change,
        or a page could not be applied. The next poll is at the time `poll_at`, or later if the live
        channel is open, because the channel makes most polls unnecessary.
        """
        self._poll_at = poll_at
        was_live = self.is_live
        while not self._stopping.is_set():
            self._woken.clear()
            if self._stopping.is_set():
                return  # `stop` may have set `woken` just before it was cleared
            if self._is_requested:
                self._stopping.wait(GATHER_SECONDS)
                return
            needs_sync = self._live is not None and self._live.step()
            if needs_sync and not self._schedule.is_failing:
                return
            if was_live and not self.is_live:
                self._poll_at = max(self._poll_at, self._poll_after_stream())
            was_live = self.is_live
            wait = self._next_step_at - self._now()
            if wait > 0:
                self._woken.wait(wait)
            elif self._now() >= (self._due_at or 0.0):
                return

    def _poll_after_stream(self) -> float:
        """Returns the earliest time of the next poll, after a stream of the live channel has ended.

        If the channel will open a new stream, the poll waits about 5 seconds for the stream, but
        not longer than until the next regular poll. Otherwise, the method returns the current time.
        """
        if self._live is None or not self._live.will_reconnect:
            return self._now()
        grace = self._schedule.jittered(RECONNECT_GRACE_SECONDS)
        return min(self._safety_poll_at, self._now() + grace)

    @property
    def _next_step_at(self) -> float:
        """The time at which the thread must wake up: for the next sync or the next step of the
        live channel, whichever is due first.
        """
        times = [self._due_at, self._live.next_at if self._live is not None else None]
        return min(at for at in times if at is not None)
