"""Defines the interface to a log that `foldlog verify` checks. Implementations read a database, a
running service, or a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from foldlog.domain.audit import Evidence
from foldlog.domain.derived import Row
from foldlog.domain.merkle import Tile
from foldlog.scripts.exports.lines import Header

from .checks import Check

BATCH_EVENTS = 1_000
RECORDS_PER_PAGE = 1_000


class Batch(NamedTuple):
    """Some events in the order of the log.

    For an archive, `tiles` are the tiles that follow these events. For a database, `columns` are
    the other columns of each event's row.
    """

    events: list[Evidence]
    tiles: Mapping[Tile, bytes] = {}
    columns: Sequence[Row] = ()


class Scope(NamedTuple):
    """The part of the log that a run verifies, and whether the run also folds the events."""

    through: int  #: the last seq
    is_whole: bool  #: from the first event to the last one
    wants_fold: bool  #: compare the master table, if the source has one
    signed_size: int  #: the number of events that a valid checkpoint covers, or 0


class Source(ABC):
    """The interface through which `foldlog verify` reads a log. It provides all data that is
    verified: events, head, checkpoint, keys and tiles, and the checks of what is kept beside them.
    """

    header: Header
    checkpoint: bytes | None = None
    vkeys: Sequence[str] = ()
    #: the tiles come together with the events, instead of from `tiles`
    carries_tiles = False
    #: the source is a file, and names the space that was signed
    is_file = False
    #: the source includes the checkpoint, if one was signed
    may_be_signed = True

    @abstractmethod
    def batches(self, after: int, through: int) -> Iterator[Batch]:
        """Yields the events with `after < seq <= through` in batches. `through` may be
        greater than `header.head`.
        """

    @abstractmethod
    def checks(self, scope: Scope) -> list[Check]:
        """Returns the checks of what this source keeps beside the events, in the order in which
        their results are told.
        """

    def tiles(self, wanted: Sequence[Tile], size: int) -> Mapping[Tile, bytes]:
        """Returns a mapping from each wanted tile to the bytes of the tile, which are the joined
        hashes of 32 bytes each. Missing tiles are left out.

        The tiles belong to the Merkle tree over the first `size` events.
        """
        return {}
