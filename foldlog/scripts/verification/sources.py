"""Defines the interface to a log that `foldlog verify` checks. Implementations read a database, a
running service, or a file.
"""

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
    """Some events in the order of the log. For an archive, also the tiles that follow these
    events.
    """

    events: list[Evidence]
    tiles: dict[Tile, bytes] = {}


class Source(ABC):
    """The interface through which `foldlog verify` reads a log. It provides all data that is
    verified: events, head, checkpoint, keys, tiles and records.
    """

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
        """Yields the events with `after < seq <= through` in batches. `through` may be
        greater than `header.head`.
        """

    def tiles(self, wanted: Sequence[Tile]) -> Mapping[Tile, bytes]:
        """Returns a mapping from each wanted tile to the bytes of the tile, which are the joined
        hashes of 32 bytes each. Missing tiles are left out.

        The tiles belong to the Merkle tree over the first `header.head` events.
        """
        return {}

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        """Yields all records of the master table as JSON objects, tombstones included.

        The records include the changes of all events up to seq `at_least`.
        """
        return iter(())
