"""The records that the events of a log make, computed from the events alone."""

from __future__ import annotations

from collections.abc import Container, Iterable

from foldlog.domain.audit import MALFORMED_ERRORS, Evidence, WrongEvent
from foldlog.domain.events import decode_event
from foldlog.domain.merge import fold

from .disk_backed import DiskBackedRecords


class Folded:
    """Folds the events in one pass from the first event on, and leaves out the skipped ones."""

    def __init__(self, skipped: Container[int] = ()):
        self._skipped = skipped
        self._seq = 0
        self.records = DiskBackedRecords()
        self.to_skip: set[int] = set()  #: the events that an `event-skipped` names
        self.failed: WrongEvent | None = None  #: the first event that failed to fold

    def add(self, events: Iterable[Evidence]) -> None:
        """Folds the next events. An error is saved in `failed`, as a later event may skip it."""
        for state, _, _ in events:
            self._seq += 1
            try:
                event = decode_event(state)
                if event.skipped_seq is not None:
                    self.to_skip.add(event.skipped_seq)
                if self.failed is None and self._seq not in self._skipped:
                    fold(self.records, event)
            except MALFORMED_ERRORS as exc:
                self.failed = self.failed or WrongEvent(self._seq, f"it cannot be folded: {exc}")
