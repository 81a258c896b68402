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

from foldlog.client.errors import BadToken, ClientError, ServerProblem

from .file_lock import FileLockTaken
from .live import LiveChannel
from .results import SyncResult
from .schedule import POLL_SECONDS_MIN, Schedule

log = logging.getLogger("foldlog")

#: wait after a local change, so that changes made together are sent together
GATHER_SECONDS = 0.02
#: poll interval while the live channel is open, in case the channel fails silently
SAFETY_POLL_SECONDS = 300.0
#: how soon, and later how often, the app is asked for another token after the server refused one
TOKEN_CHECK_SECONDS_MIN = 1.0
TOKEN_CHECK_SECONDS_MAX = 15.0
#: a stream that ends is mostly replaced within this time, which makes a poll unnecessary
RECONNECT_GRACE_SECONDS = 5.0


class BackgroundSync:
    """Runs a thread that calls the function `sync` whenever a sync is due. If `live` is `None`, the
    thread only polls.

    The function `sync` may raise `FileLockTaken` if another process is syncing. The function
    `backoff_seconds` returns the number of seconds that the server's last answer asked the client
    to wait. `has_progressed` returns whether the last sync, which may have failed, has sent or
    received something. `has_new_token` returns whether the app has another access token than the
    one that the server refused. The function `now` returns the time of a monotonic clock in
    seconds. Any thread may set the event `woken` to end a wait early.
    """

    def __init__(
        self,
        sync: Callable[[], SyncResult],
        backoff_seconds: Callable[[], float],
        now: Callable[[], float],
        woken: Event,
        live: LiveChannel | None,
        has_progressed: Callable[[], bool] = lambda: False,
        has_new_token: Callable[[], bool] = lambda: False,
    ):
        self._sync = sync
        self._has_progressed = has_progressed
        self._has_new_token = has_new_token
        self._token_wait = TOKEN_CHECK_SECONDS_MIN
        self._token_check_at: float | None = None  #: `None` unless the server refused the token
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
    def is_failing(self) -> bool:
        """Whether the thread waits after a sync that failed."""
        return self.is_running and self._schedule.is_failing

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

    def retry(self) -> None:
        """Requests a sync now, even if the last one failed."""
        if self._live is not None:
            self._live.forget_failures()
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
        self._token_check_at = None
        try:
            result = self._sync()
        except FileLockTaken:
            # The other process may sync without the changes that were just made here.
            self._safety_poll_at = self._now()
            return self._schedule.jittered(POLL_SECONDS_MIN)
        except Exception as exc:
            if not isinstance(exc, ClientError):
                # The thread survives, whatever happened.
                log.exception("syncing failed")
            if self._has_progressed():
                self._schedule.reset_failures()
            if _is_about_token(exc):
                self._token_wait = TOKEN_CHECK_SECONDS_MIN
                self._token_check_at = self._now() + self._token_wait
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
            if self._may_sign_in():
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
        """The time at which the thread must wake up: for the next sync, the next step of the live
        channel, or the next look at the token, whichever is due first.
        """
        live_at = self._live.next_at if self._live is not None else None
        times = [self._due_at, live_at, self._token_check_at]
        return min(at for at in times if at is not None)

    def _may_sign_in(self) -> bool:
        """Asks the app for another token, if the server refused the last one and the time has come.
        Returns `True` if the app has another one.
        """
        if self._token_check_at is None or self._now() < self._token_check_at:
            return False
        self._token_wait = min(TOKEN_CHECK_SECONDS_MAX, self._token_wait * 1.25)
        self._token_check_at = self._now() + self._token_wait
        if not self._has_new_token():
            return False
        if self._live is not None:
            self._live.forget_failures()
        return True


def _is_about_token(exc: Exception) -> bool:
    return isinstance(exc, BadToken) or (
        isinstance(exc, ServerProblem) and exc.status in (401, 403)
    )
