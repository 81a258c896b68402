"""Chooses the changesets of one request, and reduces their number if the server answers that a
request is too large.
"""

from __future__ import annotations

from foldlog.client.store.queue import Queue, Queued

#: changesets in a request
PUSH_MAX = 200


class PushBatch:
    """Chooses the first waiting changesets of the queue as the batch of a request, at most 200.

    The batch size is halved when the server answers 413 (body too large), and doubled after
    each successful request, up to 200.
    """

    def __init__(self, queue: Queue):
        self._queue = queue
        self._size = PUSH_MAX

    def select(self) -> list[Queued]:
        return self._queue.select("waiting", limit=self._size)

    def halve(self) -> bool:
        """Halves the maximum number of changesets in a batch, and returns `True`. If this
        number is 1 already, keeps it and returns `False`.
        """
        if self._size == 1:
            return False
        self._size = max(1, min(self._size, self._queue.count("waiting")) // 2)
        return True

    def grow(self) -> None:
        """Doubles the maximum number of changesets in a batch, up to 200. Called after a
        successful request.
        """
        self._size = min(PUSH_MAX, self._size * 2)
