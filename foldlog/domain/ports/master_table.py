"""The ports `MasterTable` and `History`: the current records of a space, and their history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from ..changesets import Key, LocalIds
from ..errors import LogBehind, LogChanged
from ..history import Order, Point
from ..ledger import ALL_CONFLICTS, ConflictsFilter
from ..limits import INTEGER_MAX
from ..snapshot import SnapshotHeader
from .cursors import decode_cursor, encode_cursor
from .event_store import SpaceId

#: The seq that the master table must have reached for a read. `None` means the head of the log at
#: the moment of the read. If the projection is halted or awaits a rebuild, `None` means 0.
AtLeast: TypeAlias = int | None


class RecordsQuery(msgspec.Struct, frozen=True):
    """A query for a page of the current records.

    If `changed_after` is `None`, the pages contain the live records, ordered by (collection, id).
    Otherwise they contain all records that have changed after the seq `changed_after`, including
    deleted records. These are shown in their current state, ordered by seq, and all records with
    the same seq are in one page.
    """

    limit: int
    collection: str | None = None
    changed_after: int | None = None
    cursor: str | None = None
    at_least: AtLeast = 0


class ProjectedPage(msgspec.Struct, kw_only=True):
    """A page that is read from the master table. If the projection stands still, `halted_at` is the
    seq of the event that it cannot fold."""

    halted_at: int | UnsetType = UNSET


class RecordsPage(ProjectedPage):
    """A page of records. `records` contains one JSON document per record, as bytes. The page shows
    the state at seq `projected`."""

    log: str
    head: int
    projected: int
    records: list[bytes]
    cursor: str | None


class ConflictsPage(ProjectedPage):
    """A page of the conflict ledger. `conflicts` contains one JSON document per conflict, as bytes.
    The page shows the state at seq `projected`."""

    log: str
    head: int
    projected: int
    conflicts: list[bytes]
    cursor: str | None


class LocalIdsPage(msgspec.Struct):
    """A page of the local ids of a device, with the ids of their records: {collection: {local id:
    id}}."""

    ids: LocalIds
    cursor: str | None


class SnapshotPage(msgspec.Struct):
    """A page of a snapshot. `records` contains one `SnapshotRecord` as JSON for each record,
    ordered by key. The page shows the state at seq `at`.

    With `cursor`, the rest of the snapshot can be requested later. `cursor` is `None` on the last
    page.
    """

    records: list[bytes]
    at: int
    mark: str  #: of event `at`; identifies the history that the records belong to
    cursor: str | None


class Snapshot(msgspec.Struct):
    """A snapshot: its header, and an iterator that reads its pages. `header.records` is only an
    estimate of the number of records, because the master table may change during the download."""

    header: SnapshotHeader
    pages: Iterator[SnapshotPage]


class SnapshotCursor(NamedTuple):
    """The position at which a snapshot continues: after the record with this collection and id.
    `log`, `at` and `mark` identify the history to which the earlier pages belong."""

    log: str = ""
    at: int = 0
    mark: str = ""
    collection: str = ""
    id: str = ""

    @classmethod
    def of(cls, cursor: str | None) -> SnapshotCursor:
        return cls(*decode_cursor(cursor, str, int, str, str, str)) if cursor else cls()

    @property
    def cursor(self) -> str:
        return encode_cursor(*self)

    def check(self, log: str, head: int, mark_there: str) -> None:
        """Checks that this cursor belongs to the current log of the space. `log` is the id of this
        log, and `head` is its last seq. `mark_there` is the mark of this log's event with the seq
        `at` of the cursor.

        Raises `LogBehind` if `at` is higher than `head`. Raises `LogChanged` if the cursor has
        another log id, or a mark that differs from `mark_there`.
        """
        if self.log and self.log != log:
            raise LogChanged("this snapshot belongs to another log", log=log, head=head)
        if self.at > head:
            raise LogBehind(
                f"this snapshot has reached seq {self.at}, which this log lacks", log=log, head=head
            )
        if self.mark != mark_there:
            raise LogChanged(f"the mark at {self.at} differs in this log", log=log, head=head)


class AsOfQuery(msgspec.Struct, frozen=True):
    """A query for a page of the records that were live at a moment. The records are ordered by
    collection, and in each collection by the time of their creation.

    All pages that are requested one after another with cursors show the same moment.
    """

    moment: Point
    limit: int
    collection: str | None = None
    cursor: str | None = None
    at_least: int = 0


class Projected(NamedTuple):
    """The progress of the master table. `position` is the seq of the last event that was folded
    into it."""

    position: int
    is_halted: bool  #: halted at an event that the projection refuses; waiting is useless


class AsOfPage(RecordsPage):
    """A page of records in their state at seq `as_of`."""

    as_of: int


class HistoryQuery(msgspec.Struct, frozen=True):
    """A query for a page of the versions of one record, ordered with the oldest or the newest
    version first."""

    limit: int
    order: Order = "oldest"
    cursor: str | None = None
    at_least: AtLeast = 0


class HistoryPage(ProjectedPage):
    """A page of the versions of one record. `versions` contains a `VersionView` as JSON for each
    version."""

    log: str
    head: int
    projected: int
    versions: list[bytes]
    cursor: str | None


class DiffQuery(msgspec.Struct, frozen=True):
    """A query for a page of the records that differ between the moments `start` and `to`.

    A page may be empty although further pages follow, because each page reads a limited number of
    events.
    """

    start: Point
    to: Point
    limit: int
    collection: str | None = None
    cursor: str | None = None
    at_least: int = 0


class DiffPage(ProjectedPage):
    """A page of the differences between two moments. `differences` contains a `Difference` as JSON
    for each record, ordered by the last event that touched the record."""

    log: str
    head: int
    projected: int
    start: int
    to: int
    differences: list[bytes]
    cursor: str | None


class History(ABC):
    """Answers questions about the past from the stored versions of records.

    All methods with a query or a moment raise these errors. `LogBehind`: the moment is beyond the
    end of the log. `ProjectionBehind`: the master table has yet to reach the moment or `at_least`;
    the error's `awaited` is the seq to wait for. `HistoryUnavailable`: the stored versions are
    missing. `UnknownSpace`: the space is missing. `InvalidRequest`: the cursor is invalid.
    """

    @abstractmethod
    def position(self, space: SpaceId) -> Projected:
        """Returns the seq that the master table of the space has reached, and whether its
        projection is halted. An implementation must be fast, because a request that waits for a seq
        calls this method again and again.

        Raises `UnknownSpace` if the space is missing.
        """

    @abstractmethod
    def as_of(self, space: SpaceId, query: AsOfQuery) -> AsOfPage:
        """Returns a page of the records that were live at the moment of the query."""

    @abstractmethod
    def record_as_of(
        self, space: SpaceId, key: Key, moment: Point, *, at_least: int = 0
    ) -> AsOfPage:
        """Returns a page that contains one record in its state at a moment. If the record was
        deleted at that moment, the page contains its tombstone.

        Raises `UnknownRecord` if the record was created after the moment, or was never created.
        """

    @abstractmethod
    def history(self, space: SpaceId, key: Key, query: HistoryQuery) -> HistoryPage:
        """Returns a page of the versions of a record, one for each event that touched it. Raises
        `UnknownRecord` if the record never existed."""

    @abstractmethod
    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        """Returns a page of the records that differ between two moments. Raises `InvalidRequest` if
        `start` is after `to`."""


class MasterTable(History):
    """Reads the current records, the conflict ledger and the local ids. All of them are computed by
    folding the log."""

    @abstractmethod
    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        """Returns a page of records at once, without waiting for the master table.

        Raises `ProjectionBehind` if the master table is still behind `at_least`, and `LogBehind` if
        `at_least` is beyond the end of the log. Raises `UnknownSpace` if the space is missing, and
        `InvalidRequest` if the cursor is invalid. The other methods of this class raise the same
        errors.
        """

    @abstractmethod
    def record(self, space: SpaceId, key: Key, *, at_least: AtLeast = 0) -> RecordsPage:
        """Returns a page that contains one record, or its tombstone if the record is deleted.
        Raises `UnknownRecord` if the record never existed. It also raises the errors of the
        method `page`."""

    @abstractmethod
    def snapshot(
        self,
        space: SpaceId,
        *,
        cursor: str | None = None,
        at_least: AtLeast = 0,
        bytes_max: int = INTEGER_MAX,
    ) -> Snapshot:
        """Returns a `Snapshot` for a new device: a header, and an iterator over pages with all
        records, including the tombstones of deleted records (see domain/snapshot). A page has at
        most `bytes_max` bytes, or one record.

        The first page is read before this method returns. Each further page is read when the
        iterator is asked for it. Between two pages, no locks or connections are held. This method
        and the iterator raise the errors of `page`. If `cursor` belongs to another history, they
        raise `LogBehind` or `LogChanged`.
        """

    @abstractmethod
    def conflicts(
        self,
        space: SpaceId,
        *,
        limit: int,
        cursor: str | None,
        at_least: AtLeast = 0,
        wanted: ConflictsFilter = ALL_CONFLICTS,
    ) -> ConflictsPage:
        """Returns a page of the conflict ledger (see domain/ledger). Conflicts are in the order in
        which they were decided."""

    @abstractmethod
    def local_ids(
        self, space: SpaceId, device: str, *, limit: int, cursor: str | None, at_least: AtLeast = 0
    ) -> LocalIdsPage:
        """Returns a page of this device's local ids with the ids of their records, ordered by
        collection and local id."""
