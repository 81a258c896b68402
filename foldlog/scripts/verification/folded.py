"""Computes the records of a space from the events of its log, to compare them with the master
table.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from foldlog.domain.audit import MALFORMED_ERRORS, Evidence, WrongEvent
from foldlog.domain.events import decode_event
from foldlog.domain.merge import fold

from .disk_backed import DiskBackedRecords


class Folded:
    """Computes records by applying (folding) the events of a log in order. The first call of
    `add` must get the first events of the log.

    Events whose seq is in `skipped` are left out. The first error is saved in `failed`.
    """

    def __init__(self, skipped: Container[int] = ()):
        self._skipped = skipped
        self._seq = 0
        self.records = DiskBackedRecords()
        self.to_skip: set[int] = set()  #: the events that an `event-skipped` names
        self.failed: WrongEvent | None = None  #: the first event that failed to fold

    def add(self, events: Iterable[Evidence]) -> None:
        """Folds the next events of the log.

        If an event cannot be folded, the error is saved in `failed` instead of raised,
        because a later event may state that this event was skipped.
        """
        for state, _, _ in events:
            self._seq += 1
            self.records.add_bytes(len(state))
            try:
                event = decode_event(state)
                if event.skipped_seq is not None:
                    self.to_skip.add(event.skipped_seq)
                if self.failed is None and self._seq not in self._skipped:
                    fold(self.records, event)
            except MALFORMED_ERRORS as exc:
                self.failed = self.failed or WrongEvent(self._seq, f"it cannot be folded: {exc}")
