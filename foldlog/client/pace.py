"""How long to wait, in seconds: until the next poll, and after trouble.

All waits are jittered, so that devices do not come in step.
"""

from __future__ import annotations

import random

from .errors import ServerProblem
from .sync import Outcome

POLL_SECONDS_MIN = 1.0
POLL_SECONDS_MAX = 60.0
RETRY_SECONDS_MIN = 1.0
RETRY_SECONDS_MAX = 300.0
#: somebody must sign in first: asking more often wears the battery alone
HELD_SECONDS = 300.0
JITTER = 0.2


class Pace:
    """Quick after something happened, ever slower when nothing does, and after each failure."""

    def __init__(self, rng: random.Random | None = None):
        self._rng = rng or random.Random()  # noqa: S311
        self._poll = POLL_SECONDS_MIN
        self._failures = 0

    def after_success(self, outcome: Outcome, backoff_seconds: float) -> float:
        self._failures = 0
        if outcome.pushed or outcome.pulled:
            self._poll = POLL_SECONDS_MIN
        else:
            self._poll = min(POLL_SECONDS_MAX, self._poll * 1.5)
        return max(self.jittered(self._poll), backoff_seconds)

    def after_failure(self, exc: Exception | None = None) -> float:
        wait = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(self._failures, 20))
        self._failures += 1
        if isinstance(exc, ServerProblem) and exc.status in (401, 403):
            return self.jittered(HELD_SECONDS)
        asked = exc.retry_after_seconds if isinstance(exc, ServerProblem) else None
        return max(self.jittered(wait), asked or 0.0)

    @property
    def is_failing(self) -> bool:
        return self._failures > 0

    def forgive(self) -> None:
        """It went well for long enough: the next failure is a first one."""
        self._failures = 0

    def jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def spread(self, seconds: float) -> float:
        """A wait for all who are told the same at the same moment: between once and thrice that."""
        return seconds * self._rng.uniform(1, 3)
