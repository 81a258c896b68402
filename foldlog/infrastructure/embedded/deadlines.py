"""Waiting that ends: by success, by a time limit, or because somebody called it off."""

from __future__ import annotations

import threading
import time

import structlog

from .errors import PostgresStopped, PostgresTooSlow

PROGRESS_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Patience:
    """One time limit that all the waits of a start share; it says now and then what it waits for.

    A crash recovery may rightly take minutes, so silence would be taken for a hang.
    """

    def __init__(self, seconds: float, called_off: threading.Event):
        self._seconds = seconds
        self._called_off = called_off
        self._started = self._spoken = time.monotonic()

    def pause(self, seconds: float, why: str, **details: object) -> None:
        """Sleeps a little, or raises when there is nothing more to wait for."""
        if self._called_off.wait(seconds):
            raise PostgresStopped
        waited = time.monotonic() - self._started
        if waited > self._seconds:
            raise PostgresTooSlow(f"gave up after {waited:.0f} s: {why}")
        if time.monotonic() - self._spoken > PROGRESS_SECONDS:
            self._spoken = time.monotonic()
            log.info(why, waited_seconds=round(waited), **details)
