"""The source of a log that `foldlog verify` checks: a database, a running service, or a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from foldlog.domain.audit import Evidence
from foldlog.domain.merkle import Tile
from foldlog.scripts.exports.lines import Header

BATCH_EVENTS = 1_000
RECORDS_PER_PAGE = 1_000


class Batch(NamedTuple):
    """Some events, and tiles that the source claims for the tree over all events so far."""

    events: list[Evidence]
    tiles: dict[Tile, bytes] = {}


class Source(ABC):
    """A log with its claims: the head, the checkpoint, the keys, the tiles, the records."""

    header: Header
    checkpoint: bytes | None = None
    vkeys: Sequence[str] = ()
    #: the tiles come together with the events, instead of from `tiles`
    carries_tiles = False
    #: the source includes the checkpoint, if one was signed
    may_be_signed = True
    #: the source has a master table
    has_records = False

    @abstractmethod
    def batches(self, after: int, through: int) -> Iterator[Batch]:
        """Yields the events with `after < seq <= through`, including events after `header.head`."""

    def tiles(self, wanted: Sequence[Tile]) -> Mapping[Tile, bytes]:
        """Returns the available ones of these tiles, for the tree of `header.head` events."""
        return {}

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        """Yields every record of the master table, deleted ones too, at seq `at_least` or later."""
        return iter(())
