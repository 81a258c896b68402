"""Defines the interface of the checks that `foldlog verify` runs beside the audit of the hashes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from foldlog.domain.audit import Evidence
from foldlog.domain.derived import Row
from foldlog.domain.events import Event
from foldlog.domain.merkle import Tile


class Audited(NamedTuple):
    """A batch of events whose hashes were checked.

    `events` is empty unless a check wants the decoded events. `tiles` are the tiles of the Merkle
    tree that these events changed. `columns` are the other columns of the events' rows; the list is
    empty if the source is no database. `carried` are the tiles that follow these events in an
    archive.
    """

    first: int  #: the seq of the first event
    last: int  #: the seq of the last event
    events: Sequence[Event]
    evidence: Sequence[Evidence]
    tiles: Mapping[Tile, bytes]
    columns: Sequence[Row]
    carried: Mapping[Tile, bytes]


class Check(ABC):
    """A check of the data that the service keeps beside the bytes of the events.

    `wrong` is the first difference that the check has found, or `None`. Checks collect it instead
    of raising it, because an earlier check may explain it better.
    """

    wrong: str | None = None
    #: whether the check reads `Audited.events`
    wants_events = False

    @abstractmethod
    def add(self, batch: Audited) -> None:
        """Checks the next events of the log."""

    @abstractmethod
    def finish(self) -> Iterator[str]:
        """Makes the comparisons that need all events. Yields a line for each comparison that was
        made or left out."""

    def note(self, difference: str | None) -> bool:
        """Keeps the first difference. Returns whether there is one."""
        self.wrong = self.wrong or difference
        return self.wrong is not None
