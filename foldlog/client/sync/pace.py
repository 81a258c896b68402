"""Chooses the sizes of requests and answers for a link that breaks.

On a good link the sizes are those of the service. After a break, a request and its answer have an
eighth of the bytes that passed between the last two breaks, so that a break wastes little. The size
grows again while bytes pass without a break.
"""

from __future__ import annotations

from collections.abc import Callable

#: the share of the bytes between two breaks that one request, or one answer, has
SHARE = 8
#: the smallest size; one changeset or event is sent even if it is larger
BYTES_MIN = 1_024
#: above this size the link counts as good
BYTES_MAX = 4 * 2**20
#: the assumed size of an event, for a service that only knows a number of events
EVENT_BYTES = 512
EVENTS_MAX = 500


class Pace:
    """Limits the bytes of a request and of its answer. `passed` returns the number of bytes that
    were sent and received so far.

    One object is kept for all syncs of a replica, so that a sync begins with what the last one has
    learned.
    """

    def __init__(self, passed: Callable[[], int]):
        self._passed = passed
        self._gap: int | None = None  #: bytes between the last two breaks
        self._broke_at = 0
        self._fruitless = 0  #: breaks in a row, without an answer between them
        #: whether the service knows the parameter `bytes`; an older one refuses it
        self.asks_bytes = True

    @property
    def bytes_max(self) -> int | None:
        """The largest size of a request, or of an answer, in bytes; `None` on a good link."""
        if self._gap is None:
            return None
        run = self._passed() - self._broke_at
        size = max(self._gap, run) // SHARE >> max(0, self._fruitless - 1)
        return max(BYTES_MIN, size) if size < BYTES_MAX else None

    @property
    def page_bytes(self) -> int | None:
        """The largest size of an answer that the service is asked for; `None` for its own."""
        return self.bytes_max if self.asks_bytes else None

    @property
    def events_max(self) -> int | None:
        """The largest number of events of an answer; `None` on a good link. It matters for a
        service that ignores `bytes_max`.
        """
        size = self.bytes_max
        if size is None:
            return None
        return max(1, min(EVENTS_MAX, size // EVENT_BYTES) >> self._fruitless)

    def note_answer(self) -> None:
        """Notes that an answer, or a page of one, was received and applied."""
        self._fruitless = 0

    def note_break(self) -> bool:
        """Notes that a connection broke in the middle of a request or an answer.

        Returns `True` if another try at once makes sense: answers came since the last break, or the
        next request will be smaller.
        """
        before = self.bytes_max
        is_first = self._fruitless == 0
        self._fruitless += 1
        self._gap = self._passed() - self._broke_at
        self._broke_at = self._passed()
        after = self.bytes_max
        return is_first or before is None or (after is not None and after < before)
