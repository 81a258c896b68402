"""The changesets of one request, and how many they may be."""

from __future__ import annotations

from foldlog.client.store.queue import Queue, Queued

#: changesets in a request
PUSH_MAX = 200


class PushBatch:
    """The first waiting changesets. A 413 (body too large) halves the batch."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self._size = PUSH_MAX

    def select(self) -> list[Queued]:
        return self._queue.select("waiting", limit=self._size)

    def halve(self) -> bool:
        """Halves the batch. Returns `False` if the batch is a single changeset already."""
        if self._size == 1:
            return False
        self._size = max(1, min(self._size, self._queue.count("waiting")) // 2)
        return True

    def grow(self) -> None:
        """Doubles the batch after a successful request."""
        self._size = min(PUSH_MAX, self._size * 2)
