"""The time limit of a start."""

from __future__ import annotations

import threading
import time

import structlog

from .errors import PostgresStopped, PostgresTooSlow

PROGRESS_SECONDS = 5.0

log = structlog.get_logger(__name__)


class StartDeadline:
    """One time limit that all waits of a start share. `cancelled` ends the start early.

    It logs the reason of a long wait every few seconds, because a crash recovery may take minutes.
    """

    def __init__(self, seconds: float, cancelled: threading.Event):
        self._seconds = seconds
        self._cancelled = cancelled
        self._started = self._logged = time.monotonic()

    def pause(self, seconds: float, why: str, **details: object) -> None:
        """Sleeps. Raises `PostgresTooSlow` after the time limit, `PostgresStopped` if cancelled."""
        if self._cancelled.wait(seconds):
            raise PostgresStopped
        waited = time.monotonic() - self._started
        if waited > self._seconds:
            raise PostgresTooSlow(f"gave up after {waited:.0f} s: {why}")
        if time.monotonic() - self._logged > PROGRESS_SECONDS:
            self._logged = time.monotonic()
            log.info(why, waited_seconds=round(waited), **details)
