"""Syncing in the background, never in the caller's way.

One thread: it syncs when something was changed here, takes what the live channel brings where
there is one, and else polls, quickly after something happened and ever slower when nothing does.
Trouble makes it wait longer each time; what the server asks for is heeded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from .errors import ServerProblem, Unreachable
from .file_lock import FileLockTaken
from .live import Live
from .pace import POLL_SECONDS_MIN, Pace
from .sync import Outcome

log = logging.getLogger("foldlog")

#: a moment for changes that come together to go together
GATHER_SECONDS = 0.02
#: while the live channel is open, somebody looks nevertheless: what if it were deaf?
SAFETY_SECONDS = 300.0
#: a stream that has ended mostly goes on within this, and then nothing needs to be polled
GRACE_SECONDS = 5.0


class Background:
    """`sync` raises `FileLockTaken` while somebody else does it. Without `live` it only polls."""

    def __init__(
        self,
        sync: Callable[[], Outcome],
        backoff_seconds: Callable[[], float],
        now: Callable[[], float],
        woken: Event,
        live: Live | None,
    ):
        self._sync = sync
        self._backoff_seconds = backoff_seconds
        self._now = now
        self._woken = woken
        self._live = live
        self._is_wanted = False
        self._ending = Event()
        self._thread: Thread | None = None
        self._pace = Pace()
        self._poll_at: float | None = None  #: when to sync next; `None` while it does
        self._look_at = 0.0  #: ... and when, as long as the live channel is open

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    @property
    def is_live(self) -> bool:
        return self._live is not None and self._live.is_live

    @property
    def next_try_seconds(self) -> float | None:
        due_at = self._due_at
        return None if due_at is None else max(0.0, due_at - self._now())

    def start(self) -> None:
        if self._thread is None:
            self._ending.clear()
            self._thread = Thread(target=self._run, name="foldlog-sync", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._ending.set()
            self._woken.set()
            self._thread.join()
            if self._live is not None:
                self._live.close()
            self._thread = None
            self._poll_at = None

    def wake(self) -> None:
        """Something was changed here. While the server is in trouble, that changes no wait."""
        if not self._pace.is_failing:
            self._is_wanted = True
            self._woken.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._poll_at = None
            self._is_wanted = False
            wait = self._try()
            self._listen(self._now() + wait)

    def _try(self) -> float:
        """Syncs; returns how long to wait."""
        try:
            outcome = self._sync()
        except FileLockTaken:
            # What it does may not be all that there is to do here.
            self._look_at = self._now()
            return self._pace.jittered(POLL_SECONDS_MIN)
        except Exception as exc:
            if not isinstance(exc, ServerProblem | Unreachable):
                # A full disk, a locked file: the app must not lose its syncing for good over it.
                log.exception("syncing failed")
            self._may_connect_from(None)
            return self._pace.after_failure(exc)
        backoff = self._backoff_seconds()
        self._may_connect_from(self._now() + backoff)
        self._look_at = self._now() + max(self._pace.jittered(SAFETY_SECONDS), backoff)
        return self._pace.after_success(outcome, backoff)

    def _may_connect_from(self, at: float | None) -> None:
        if self._live is not None:
            self._live.may_connect_from = at

    @property
    def _due_at(self) -> float | None:
        if self._poll_at is not None and self.is_live and not self._pace.is_failing:
            return max(self._poll_at, self._look_at)
        return self._poll_at

    def _listen(self, poll_at: float) -> None:
        """Takes what the live channel brings. Returns when it is time to sync."""
        self._poll_at = poll_at
        was_live = self.is_live
        while not self._ending.is_set():
            self._woken.clear()
            if self._ending.is_set():
                return  # `stop` had woken us just before
            if self._is_wanted:
                self._ending.wait(GATHER_SECONDS)
                return
            if self._live is not None and self._live.attend() and not self._pace.is_failing:
                return
            if was_live and not self.is_live:
                self._poll_at = max(self._poll_at, self._after_stream())
            was_live = self.is_live
            wait = self._next_at - self._now()
            if wait > 0:
                self._woken.wait(wait)
            elif self._now() >= (self._due_at or 0.0):
                return

    def _after_stream(self) -> float:
        """When to poll if no other stream begins before. But never put off for ever."""
        if self._live is None or not self._live.goes_on:
            return self._now()
        return min(self._look_at, self._now() + self._pace.jittered(GRACE_SECONDS))

    @property
    def _next_at(self) -> float:
        """When there is something to do, if nobody wakes us before."""
        times = [self._due_at, self._live.next_at if self._live is not None else None]
        return min(at for at in times if at is not None)
