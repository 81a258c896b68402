"""Syncing in the background, never in the caller's way.

One thread: it syncs when something was changed here, and else polls, quickly after something
happened and ever slower when nothing does. Trouble makes it wait longer each time; what the
server asks for is heeded. All waits are jittered, so that devices do not come in step.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import IO

from .errors import ServerProblem, Unreachable
from .sync import Outcome

log = logging.getLogger("foldlog")

POLL_SECONDS_MIN = 1.0
POLL_SECONDS_MAX = 60.0
RETRY_SECONDS_MIN = 1.0
RETRY_SECONDS_MAX = 300.0
#: somebody must sign in first: asking more often wears the battery alone
HELD_SECONDS = 300.0
#: a moment for changes that come together to go together
GATHER_SECONDS = 0.02
JITTER = 0.2


class Pace:
    """How long to wait before the next round, in seconds."""

    def __init__(self, rng: random.Random | None = None):
        self._rng = rng or random.Random()
        self._poll = POLL_SECONDS_MIN
        self._failures = 0

    def after_success(self, outcome: Outcome, backoff_seconds: float) -> float:
        self._failures = 0
        if outcome.pushed or outcome.pulled:
            self._poll = POLL_SECONDS_MIN
        else:
            self._poll = min(POLL_SECONDS_MAX, self._poll * 1.5)
        return max(self._jittered(self._poll), backoff_seconds)

    def after_failure(self, exc: Exception) -> float:
        wait = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(self._failures, 20))
        self._failures += 1
        if isinstance(exc, ServerProblem) and exc.status in (401, 403):
            return self._jittered(HELD_SECONDS)
        asked = exc.retry_after_seconds if isinstance(exc, ServerProblem) else None
        return max(self._jittered(wait), asked or 0.0)

    @property
    def is_failing(self) -> bool:
        return self._failures > 0

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - JITTER, 1 + JITTER)


class Background:
    def __init__(
        self,
        sync: Callable[[], Outcome],
        backoff_seconds: Callable[[], float],
        now: Callable[[], float],
    ):
        self._sync = sync
        self._backoff_seconds = backoff_seconds
        self._now = now
        self._woken = Event()
        self._ending = Event()
        self._thread: Thread | None = None
        self._pace = Pace()
        self._next_at: float | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    @property
    def next_try_seconds(self) -> float | None:
        return None if self._next_at is None else max(0.0, self._next_at - self._now())

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
            self._thread = None
            self._next_at = None

    def wake(self) -> None:
        """Something was changed here. While the server is in trouble, that changes no wait."""
        if not self._pace.is_failing:
            self._woken.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._woken.clear()
            if self._ending.is_set():
                break  # `stop` had woken us just before
            self._next_at = None
            wait = self._try()
            self._next_at = self._now() + wait
            if self._woken.wait(wait):
                self._ending.wait(GATHER_SECONDS)

    def _try(self) -> float:
        try:
            return self._pace.after_success(self._sync(), self._backoff_seconds())
        except (ServerProblem, Unreachable) as exc:
            return self._pace.after_failure(exc)
        except Exception as exc:
            # A full disk, a locked file: the app must not lose its syncing for good over it.
            log.exception("syncing failed")
            return self._pace.after_failure(exc)


class TurnTaken(Exception):
    """Another process, or thread, is syncing this file."""


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """The turn to sync the replica at `path`. The system gives it back if its holder dies.

    Raises `TurnTaken` if somebody else has it.
    """
    with path.with_name(path.name + "-sync").open("ab") as file:
        _lock(file)
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as exc:
            raise TurnTaken from exc

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise TurnTaken from exc
