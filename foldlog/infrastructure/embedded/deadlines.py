"""Limits how long a start of the embedded server may take."""

from __future__ import annotations

import threading
import time

import structlog

from .errors import PostgresStopped, PostgresTooSlow

PROGRESS_SECONDS = 5.0

log = structlog.get_logger(__name__)


class StartDeadline:
    """The time limit of one start of the server. All waits during the start use the same limit.

    If another thread sets the event `cancelled`, the start ends early. During a long wait, the
    reason of the wait is logged every few seconds, because a crash recovery may take minutes.
    """

    def __init__(self, seconds: float, cancelled: threading.Event):
        self._seconds = seconds
        self._cancelled = cancelled
        self._started = self._logged = time.monotonic()

    def pause(self, seconds: float, why: str, **details: object) -> None:
        """Sleeps for `seconds`, and then checks whether the start may continue.

        Raises `PostgresTooSlow` if the time limit of the start has passed. Raises `PostgresStopped`
        if the start was cancelled. `why` is the reason of the wait, for the log and the error
        message.
        """
        if self._cancelled.wait(seconds):
            raise PostgresStopped
        waited = time.monotonic() - self._started
        if waited > self._seconds:
            raise PostgresTooSlow(f"gave up after {waited:.0f} s: {why}")
        if time.monotonic() - self._logged > PROGRESS_SECONDS:
            self._logged = time.monotonic()
            log.info(why, waited_seconds=round(waited), **details)
