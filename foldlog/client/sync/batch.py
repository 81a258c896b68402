"""Chooses the changesets of one request, and makes the batch smaller when a request was too large
for the server, for a proxy before it, or for a link that breaks.
"""

from __future__ import annotations

from foldlog.client.store.queue import Queue, Queued

from .pace import Pace

#: changesets in a request
PUSH_MAX = 200
#: bytes of the changesets of a request, uncompressed
PUSH_BYTES_MAX = 2**20
#: a batch grows to this share of the smallest size that was too large
SHARE_OF_REFUSED = 2


class PushBatch:
    """Chooses the first waiting changesets of the queue as the batch of a request: at most 200, and
    about a megabyte. A batch has at least one changeset, even if that one is larger.

    The size in bytes is halved when a server or a proxy answers 413, and doubled after each
    successful request, up to half of the size that was refused. On a link that breaks, `pace`
    limits the size too. One object is kept for all syncs of a replica.
    """

    def __init__(self, queue: Queue, pace: Pace):
        self._queue = queue
        self._pace = pace
        self._bytes = PUSH_BYTES_MAX
        self._refused_bytes = PUSH_BYTES_MAX * 2  #: the smallest batch that was too large

    def select(self) -> list[Queued]:
        on_this_link = self._pace.bytes_max
        size = self._bytes if on_this_link is None else min(self._bytes, on_this_link)
        return self._queue.select("waiting", limit=PUSH_MAX, bytes_max=size)

    def halve(self) -> bool:
        """Halves the size of a batch, and returns `True`. Returns `False` if the last batch had
        only one changeset, which is too large alone, or no changeset.
        """
        batch = self.select()
        if len(batch) < 2:
            return False
        size = sum(queued.size for queued in batch)
        self._refused_bytes = min(self._refused_bytes, size)
        self._bytes = size // 2
        return True

    def grow(self) -> None:
        """Doubles the size of a batch. Called after a successful request.

        The refused size is forgotten slowly, in case that another network allows more.
        """
        self._refused_bytes += self._refused_bytes // 16
        most = min(PUSH_BYTES_MAX, self._refused_bytes // SHARE_OF_REFUSED)
        self._bytes = max(self._bytes, min(most, self._bytes * 2))
