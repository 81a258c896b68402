"""Computes how long to wait between syncs and after failures, in seconds.

Each wait is changed by a random amount, so that the requests of many devices are spread over time.
"""

from __future__ import annotations

import random

from foldlog.client.errors import ServerProblem

from .results import SyncResult

POLL_SECONDS_MIN = 1.0
POLL_SECONDS_MAX = 60.0
RETRY_SECONDS_MIN = 1.0
RETRY_SECONDS_MAX = 300.0
#: wait after a failure that a retry cannot fix: a missing sign-in, a service without live channel
LONG_RETRY_SECONDS = 300.0
JITTER = 0.2


class Schedule:
    """Computes the wait before the next sync.

    The wait is short after activity, grows while the replica is idle, and doubles with each
    failure in a row.
    """

    def __init__(self, rng: random.Random | None = None):
        self._rng = rng or random.Random()  # noqa: S311
        self._poll_seconds = POLL_SECONDS_MIN
        self._failures = 0

    def after_success(self, result: SyncResult, backoff_seconds: float) -> float:
        self._failures = 0
        if result.pushed or result.pulled:
            self._poll_seconds = POLL_SECONDS_MIN
        else:
            self._poll_seconds = min(POLL_SECONDS_MAX, self._poll_seconds * 1.5)
        return max(self.jittered(self._poll_seconds), backoff_seconds)

    def after_failure(self, exc: Exception | None = None) -> float:
        """Returns the number of seconds to wait after a failure.

        The wait doubles with each failure in a row, from about 1 to about 300 seconds. If
        the server sent the header `Retry-After`, the wait is at least that long. If the
        server refused the access token (401 or 403), the wait is about 300 seconds.
        """
        wait = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(self._failures, 20))
        self._failures += 1
        if isinstance(exc, ServerProblem) and exc.status in (401, 403):
            return self.jittered(LONG_RETRY_SECONDS)
        retry_after = exc.retry_after_seconds if isinstance(exc, ServerProblem) else None
        return max(self.jittered(wait), retry_after or 0.0)

    @property
    def is_failing(self) -> bool:
        return self._failures > 0

    def reset_failures(self) -> None:
        """Sets the number of failures to 0, so that the next failure gets the shortest
        wait.
        """
        self._failures = 0

    def jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def spread(self, seconds: float) -> float:
        """Returns a random number between `seconds` and three times `seconds`.

        A client waits this long before it opens a new stream. The random wait spreads the
        requests after a restart of the service, which ends the streams of all clients at
        the same time.
        """
        return seconds * self._rng.uniform(1, 3)
