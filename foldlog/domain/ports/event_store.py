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
    """Asks for a page of the log: at most `limit` events after seq `after`."""

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
        """Returns the maximum size of the page in bytes. Only the last event of a page may exceed
        it."""
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
        """Appends the new changesets of a push to the log, and answers each changeset of the push.

        Creates the space if it is missing. Returns after the commit. Raises the errors of
        `PushDecider.take`, `StorageUnavailable` if the database is unreachable, and
        `OutcomeUnknown` if the push may have been stored.
        """
        return self.submit(space, push).result()

    @abstractmethod
    def submit(self, space: SpaceId, push: Push, rate_key: str = "") -> Future[Receipt]:
        """Starts a push as `push` does, and returns a future for its receipt at once. Raises
        `RateLimited` if too many bytes of pushes already wait in this space.

        `rate_key` identifies the caller. A caller may use only a share of the threads that commit
        pushes.
        """

    @abstractmethod
    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        """Reads a page of the log. Raises `UnknownSpace`, or `LogBehind` or `LogChanged` if the seq
        and mark in the query belong to another log."""

    @abstractmethod
    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        """Reads a page of the log from memory, at once. If it returns `None`, call `range_after`
        instead.

        The page may lack events that another process has appended a moment ago. The seq and mark in
        the query are left unchecked here; `range_after` checks them.
        """

    @abstractmethod
    def cached_head(self, space: SpaceId) -> int | None:
        """Returns the head of the log that `cached_range` would use, or `None` if it is unknown."""

    @abstractmethod
    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Calls `on_growth` soon after each growth of the space's log. Returns a function that ends
        these calls.

        The call may come from any thread. Sometimes it comes although the log still has the same
        size.
        """

    @abstractmethod
    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        """Makes every fold skip an event at which the master table has halted (see
        domain/skipping).

        Raises `NotStopped` if the master table is not halted at this event, `InvalidRequest` if the
        reason or the name in `by` is invalid, `UnknownSpace`, `StorageUnavailable` or
        `OutcomeUnknown`.
        """

    @abstractmethod
    def skipped(self, space: SpaceId) -> frozenset[int]:
        """Returns the seqs of the events that every fold must skip."""

    @abstractmethod
    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        """Yields the log entries with `after < seq <= through` in order. The memory used is the
        same for any number of entries."""

    @abstractmethod
    def collections(self, space: SpaceId) -> list[Version]:
        """Returns the current versions of all defined collections, ordered by name. Raises
        `UnknownSpace`."""

    @abstractmethod
    def collection(
        self, space: SpaceId, collection: str, version: int | None = None
    ) -> tuple[Definition, list[Version]]:
        """Returns a version of a collection's definition (by default the last one), and the list of
        all its versions.

        Raises `UnknownSpace`, or `UnknownCollection` if the collection or this version is missing.
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

        If the collection already has this schema, the call has no effect. The stored records are
        checked, unless the comparison with the current schema shows that all of them are valid. The
        check takes `seconds_max` seconds at most, and `report` is called with the number of checked
        records.

        Raises `VersionConflict`, `SchemaNotAdditive`, `SchemaViolated`, `LimitExceeded`,
        `ProjectionBehind`, `StorageUnavailable` or `OutcomeUnknown`.
        """

    @abstractmethod
    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        """Returns the records that `wanted` selects. Reads the whole log for this; `report` is
        called with the seq reached and the last seq.

        Raises `UnknownSpace`, `InvalidRequest` if the selection is invalid, and `UnknownRecord` if
        a selected key is missing in the log.
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
        from it (see domain/erasure).

        Each record is erased completely or not at all. A record that was erased earlier is reported
        as erased. The method reads the whole log; `report` is called with the seq reached and the
        last seq. With `tidies`, the database then also frees the space of the old row versions,
        which still contain the values.

        Raises the errors of `find_erasable` before any record is erased. After `StorageUnavailable`
        or `OutcomeUnknown`, call the method again with the same keys: it continues the erasure.
        """
