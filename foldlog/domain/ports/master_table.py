"""The ports to the master table: the current records, and their history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ..changesets import Key, LocalIds
from ..errors import LogBehind, LogChanged
from ..history import Order, Point
from ..ledger import ALL_CONFLICTS, ConflictsFilter
from ..snapshot import SnapshotHeader
from .cursors import decode_cursor, encode_cursor
from .event_store import SpaceId


class RecordsQuery(msgspec.Struct, frozen=True):
    """Asks for a page of the master table.

    Without `changed_after`: the live records, by (collection, id). With `changed_after`: every
    record that changed after that seq, in its current state, tombstones too, by seq. All records
    of one seq are in the same page.
    """

    limit: int
    collection: str | None = None
    changed_after: int | None = None
    cursor: str | None = None
    at_least: int = 0


class RecordsPage(msgspec.Struct):
    """`records` are JSON documents as bytes. The page is true at seq `projected`."""

    log: str
    head: int
    projected: int
    records: list[bytes]
    cursor: str | None


class ConflictsPage(msgspec.Struct):
    """`conflicts` are JSON documents as bytes. The page is true at seq `projected`."""

    log: str
    head: int
    projected: int
    conflicts: list[bytes]
    cursor: str | None


class LocalIdsPage(msgspec.Struct):
    """A page of the record ids that belong to a device's own keys."""

    ids: LocalIds
    cursor: str | None


class SnapshotPage(msgspec.Struct):
    """`records` are `SnapshotRecord`s as JSON, in the order of their keys, true at seq `at`.

    A snapshot with this `cursor` continues after them. `cursor` is `None` at the end.
    """

    records: list[bytes]
    at: int
    mark: str  #: of event `at`; identifies the history that the records belong to
    cursor: str | None


class Snapshot(msgspec.Struct):
    """`header.records` is an estimate for a progress bar: the table may change meanwhile."""

    header: SnapshotHeader
    pages: Iterator[SnapshotPage]


class SnapshotCursor(NamedTuple):
    """Where a snapshot continues: after this record, on this history, at seq `at` or later."""

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
        """Raises `LogChanged` or `LogBehind` if the cursor belongs to another history.

        `mark_there` is the log's own mark at `at`.
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
    """Asks for the live records at a moment, by collection, in the order of their creation.

    All pages of one cursor show the same moment.
    """

    moment: Point
    limit: int
    collection: str | None = None
    cursor: str | None = None
    at_least: int = 0


class Projected(NamedTuple):
    """The seq that the master table has reached."""

    position: int
    is_halted: bool  #: halted at an event that the projection refuses; waiting is useless


class AsOfPage(RecordsPage):
    """A page of records as they were at seq `as_of`."""

    as_of: int


class HistoryQuery(msgspec.Struct, frozen=True):
    """Asks for a page of the versions of one record."""

    limit: int
    order: Order = "oldest"
    cursor: str | None = None
    at_least: int = 0


class HistoryPage(msgspec.Struct):
    """`versions` are `VersionView`s as JSON."""

    log: str
    head: int
    projected: int
    versions: list[bytes]
    cursor: str | None


class DiffQuery(msgspec.Struct, frozen=True):
    """Asks for the records that differ between the moments `start` and `to`.

    A page may be empty although another page follows, because a page reads a limited number of
    events.
    """

    start: Point
    to: Point
    limit: int
    collection: str | None = None
    cursor: str | None = None
    at_least: int = 0


class DiffPage(msgspec.Struct):
    """`differences` are `Difference`s as JSON, by the last event that touched each record."""

    log: str
    head: int
    projected: int
    start: int
    to: int
    differences: list[bytes]
    cursor: str | None


class History(ABC):
    """Answers questions about the past from the stored versions of records.

    Raises `LogBehind` for a moment beyond the log, and `ProjectionBehind` for a moment (or an
    `at_least`) that is not projected yet; this error says which seq to wait for. Raises
    `HistoryUnavailable` for a space whose versions were never stored, and `UnknownSpace` and
    `InvalidRequest` as `MasterTable.page` does.
    """

    @abstractmethod
    def position(self, space: SpaceId) -> Projected:
        """How far the space is projected. Cheap, because waiting readers call it often.

        Raises `UnknownSpace`.
        """

    @abstractmethod
    def as_of(self, space: SpaceId, query: AsOfQuery) -> AsOfPage:
        """The records that were live at the moment."""

    @abstractmethod
    def record_as_of(
        self, space: SpaceId, key: Key, moment: Point, *, at_least: int = 0
    ) -> AsOfPage:
        """A page of one record or its tombstone.

        Raises `UnknownRecord` if the record was created after the moment, or never.
        """

    @abstractmethod
    def history(self, space: SpaceId, key: Key, query: HistoryQuery) -> HistoryPage:
        """The versions of a record, event by event. Raises `UnknownRecord`."""

    @abstractmethod
    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        """The differences between two moments. `InvalidRequest` if `start` is after `to`."""


class MasterTable(History):
    """The current records, the conflict ledger and the local ids: the fold of the log."""

    @abstractmethod
    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        """Reads a page of records.

        Returns or raises at once, also if `at_least` is not reached yet (`ProjectionBehind`). An
        `at_least` beyond the log raises `LogBehind`, here and in all methods below. Raises
        `UnknownSpace`, and `InvalidRequest` for an invalid cursor.
        """

    @abstractmethod
    def record(self, space: SpaceId, key: Key, *, at_least: int = 0) -> RecordsPage:
        """A page of one record. Raises `UnknownRecord`, and the errors of `page`."""

    @abstractmethod
    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        """All records for a new device, with the tombstones of deleted ones (domain/snapshot).

        The first page is read before this method returns, each further page on demand. Between
        two pages no lock or connection is held. This method and the pages raise the errors of
        `page`, and `LogBehind` or `LogChanged` if `cursor` belongs to another history.
        """

    @abstractmethod
    def conflicts(
        self,
        space: SpaceId,
        *,
        limit: int,
        cursor: str | None,
        at_least: int = 0,
        wanted: ConflictsFilter = ALL_CONFLICTS,
    ) -> ConflictsPage:
        """A page of the ledger (domain/ledger), in the order in which conflicts were decided."""

    @abstractmethod
    def local_ids(
        self, space: SpaceId, device: str, *, limit: int, cursor: str | None, at_least: int = 0
    ) -> LocalIdsPage:
        """A page of the ids that belong to this device's own keys, by collection and key."""
