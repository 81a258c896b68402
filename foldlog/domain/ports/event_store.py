"""The port `EventStore`: the append-only logs of all spaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future

import msgspec

from ..changesets import Key, Push
from ..collections import Definition, Outcome, Proposal, Version
from ..erasure import Erasable, Erased, Selection
from ..events import LogEntry
from ..limits import INTEGER_MAX, Limits
from ..push_decider import Answer
from ..skipping import Skipped

SpaceId = str
#: called with the work that is done so far, and with all the work
Progress = Callable[[int, int], None]


class Receipt(msgspec.Struct):
    """The answer to a push: the log's id and head, and one answer for each changeset."""

    log: str
    head: int
    verdicts: list[Answer]


class RangeQuery(msgspec.Struct, frozen=True):
    """A query for a page of the log. The page contains at most `limit` events, starting after seq
    `after`."""

    after: int
    limit: int
    mark: str | None = None
    #: keeps only the changesets that touch one of these collections, and all other kinds of events
    collections: Sequence[str] | None = None
    #: this device receives its own changesets in the short form
    short_for_device: str | None = None
    #: for a reader that takes smaller pages than `page_bytes_max`
    bytes_max: int = INTEGER_MAX

    def page_bytes_max(self, limits: Limits) -> int:
        """Returns the maximum size of the page in bytes: the smaller of `bytes_max` and the
        published limit. A page contains at least one event. The last event of a page may make the
        page larger than this maximum."""
        return min(self.bytes_max, limits.page_bytes_max)


class Range(msgspec.Struct):
    """A page of the log. `events` contains the stored bytes of each event, which are sent to the
    client unchanged."""

    log: str
    head: int
    events: list[bytes]
    #: the seq of the last event that was read: the next cursor, with its mark
    through: int
    mark: str

    @property
    def more(self) -> bool:
        return self.through < self.head


class EventStore(ABC):
    """Stores and reads the append-only logs of all spaces."""

    def push(self, space: SpaceId, push: Push) -> Receipt:
        """Appends the new changesets of a push to the log, and returns the answers to all
        changesets of the push. Creates the space if it is missing. Returns after the commit.

        Raises the errors of `PushDecider.take` if the push is refused. Raises `StorageUnavailable`
        if the database is unreachable. Raises `OutcomeUnknown` if the connection was lost during
        the commit, so that the push may have been stored.
        """
        return self.submit(space, push).result()

    @abstractmethod
    def submit(self, space: SpaceId, push: Push, rate_key: str = "") -> Future[Receipt]:
        """Starts a push and returns at once, with a future for the receipt. The future has the same
        result or error as the method `push`.

        Raises `RateLimited` if the pushes that already wait in this space are too large together.
        `rate_key` identifies the caller: a single caller may use only a part of the threads that
        commit pushes.
        """

    @abstractmethod
    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        """Reads a page of the log.

        Raises `UnknownSpace` if the space is missing. Raises `LogBehind` if the seq in the query is
        higher than the head of the log. Raises `LogChanged` if the mark in the query differs from
        the log's mark at this seq.
        """

    @abstractmethod
    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        """Returns a page of the log from memory, without waiting for the database. Returns `None`
        if memory lacks the page; then call `range_after`.

        If another process has appended events a moment ago, the page may lack these events. The
        method trusts the seq and the mark in the query. Only `range_after` compares them with the
        log.
        """

    @abstractmethod
    def cached_head(self, space: SpaceId) -> int | None:
        """Returns the head of the log from memory, without waiting for the database. The result may
        be too low if another process has appended events a moment ago. Returns `None` if memory
        lacks a recent head; then call `range_after`."""

    @abstractmethod
    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Registers the function `on_growth`, which is then called soon after new events were added
        to the space's log. Returns a function that ends these calls.

        `on_growth` may be called from any thread. Sometimes it is called although there are no new
        events.
        """

    @abstractmethod
    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        """Makes every fold skip an event at which the projection to the master table has halted,
        because it could not apply the event (see domain/skipping).

        Raises `NotStopped` if the projection of the space to the master table is not halted at this
        event. Raises `InvalidRequest` if the reason or the name in `by` is invalid. Raises
        `UnknownSpace` if the space is missing. Raises `StorageUnavailable` if the database is
        unreachable. Raises `OutcomeUnknown` if the connection was lost during the commit, so that
        the skip may have been stored.
        """

    @abstractmethod
    def skipped(self, space: SpaceId) -> frozenset[int]:
        """Returns the seqs of the events that every fold must skip."""

    @abstractmethod
    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        """Yields the log entries with `after < seq <= through`, ordered by seq. The memory used is
        independent of the number of entries."""

    @abstractmethod
    def collections(self, space: SpaceId) -> list[Version]:
        """Returns the current versions of all defined collections, ordered by name. Raises
        `UnknownSpace` if the space is missing."""

    @abstractmethod
    def collection(
        self, space: SpaceId, collection: str, version: int | None = None
    ) -> tuple[Definition, list[Version]]:
        """Returns a version of a collection's definition (by default the last one), and the list of
        all its versions.

        Raises `UnknownSpace` if the space is missing, and `UnknownCollection` if the collection or
        this version is missing.
        """

    @abstractmethod
    def define(
        self,
        space: SpaceId,
        collection: str,
        wanted: Proposal,
        *,
        seconds_max: float | None = None,
        report: Callable[[int], None] = lambda checked: None,
    ) -> Outcome:
        """Defines a collection, or gives it a new schema. Creates the space if it is missing.
        Returns an `Outcome`. If the collection already has this schema, the call has no effect.

        The stored records are checked, unless the current schema shows that all of them are valid.
        The check takes `seconds_max` seconds at most. During the check, `report` is called with the
        number of records checked so far.

        Raises `VersionConflict` if the current version differs from `if_version`. Raises
        `SchemaNotAdditive` if the new schema may refuse values that the current one allows. Raises
        `SchemaViolated` if stored records violate the new schema. Raises `LimitExceeded` if a limit
        is exceeded. Raises `ProjectionBehind` if the stored records cannot be checked yet. Raises
        `StorageUnavailable` if the database is unreachable, and `OutcomeUnknown` if the definition
        may have been stored.
        """

    @abstractmethod
    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        """Returns a list with an `Erasable` for each record that `wanted` selects. The method reads
        the whole log. Meanwhile `report` is called with two numbers: the seq that was reached, and
        the last seq.

        Raises `UnknownSpace` if the space is missing. Raises `InvalidRequest` if the selection is
        invalid. Raises `UnknownRecord` if `wanted` contains the key of a record that has no
        operation in the log.
        """

    @abstractmethod
    def erase(
        self,
        space: SpaceId,
        keys: Collection[Key],
        *,
        reason: str,
        by: str | None = None,
        tidies: bool = False,
        report: Progress = lambda done, of: None,
    ) -> list[Erased]:
        """Erases records: removes their values from the log and from all tables that are computed
        from the log (see domain/erasure). Returns an `Erased` for each record, including the
        records that were erased earlier.

        Each record is erased completely or not at all. The method reads the whole log. Meanwhile
        `report` is called with two numbers: the seq that was reached, and the last seq.

        PostgreSQL keeps the old versions of the changed rows, with the values, until `VACUUM`
        removes them. If `tidies` is true, the method runs `VACUUM` at the end.

        Raises the errors of `find_erasable` before any record is erased. After `StorageUnavailable`
        or `OutcomeUnknown`, call the method again with the same keys to continue the erasure.
        """
