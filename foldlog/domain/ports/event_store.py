"""The port to the append-only logs."""

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
    """The answer to a push."""

    log: str
    head: int
    verdicts: list[Answer]


class RangeQuery(msgspec.Struct, frozen=True):
    """Asks for the events after seq `after`, at most `limit` of them."""

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
        """The size of a page in bytes, which only the page's last event may exceed."""
        return min(self.bytes_max, limits.page_bytes_max)


class Range(msgspec.Struct):
    """A page of the log. `events` are the stored bytes, ready to be joined."""

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
    """The append-only logs of all spaces."""

    def push(self, space: SpaceId, push: Push) -> Receipt:
        """Appends the new changesets of a push and answers each of its changesets.

        Creates the space if necessary. Returns after the commit. Raises the errors of
        `PushDecider.take`, `StorageUnavailable`, `OutcomeUnknown`, and `ProjectionBehind` if guards
        cannot be decided now.
        """
        return self.submit(space, push).result()

    @abstractmethod
    def submit(self, space: SpaceId, push: Push, rate_key: str = "") -> Future[Receipt]:
        """Starts a `push` and returns at once. Raises `RateLimited` if too many bytes wait.

        `rate_key` is the caller whose share of the committing threads the push uses.
        """

    @abstractmethod
    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        """Reads a page of the log. Raises `UnknownSpace`, `LogBehind` or `LogChanged`."""

    @abstractmethod
    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        """Reads a page from memory, at once. `None`: the caller must use `range_after`.

        For a moment the page may lack events that another process has appended. This method
        accepts every cursor; only `range_after` refuses one.
        """

    @abstractmethod
    def cached_head(self, space: SpaceId) -> int | None:
        """The log's head as `cached_range` knows it, or `None`."""

    @abstractmethod
    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Calls `on_growth` soon after the space's log has grown; returns a function to stop it.

        The call may come from any thread, and it may come although the log has the same size.
        """

    @abstractmethod
    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        """Skips an event at which the master table has halted (domain/skipping).

        Raises `UnknownSpace`, `NotStopped`, `InvalidRequest`, `StorageUnavailable`,
        `OutcomeUnknown`.
        """

    @abstractmethod
    def skipped(self, space: SpaceId) -> frozenset[int]:
        """The seqs of the events that every fold leaves out."""

    @abstractmethod
    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        """The log's entries with `after < seq <= through`, in order, in constant memory."""

    @abstractmethod
    def collections(self, space: SpaceId) -> list[Version]:
        """The collections that are defined, by name. Raises `UnknownSpace`."""

    @abstractmethod
    def collection(
        self, space: SpaceId, collection: str, version: int | None = None
    ) -> tuple[Definition, list[Version]]:
        """One version of a collection's definition (default: the last), and all its versions.

        Raises `UnknownSpace`, `UnknownCollection`.
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
        """Defines a collection and creates the space if necessary.

        Defining the current schema again has no effect.
        The stored records are checked, unless the two schemas show that all of them are valid. The
        check takes `seconds_max` seconds at most; `report` receives the number of checked records.
        Raises `VersionConflict`, `SchemaNotAdditive`, `SchemaViolated`, `LimitExceeded`,
        `ProjectionBehind`, `StorageUnavailable`, `OutcomeUnknown`.
        """

    @abstractmethod
    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        """Finds the selected records. Reads the whole log; `report` receives seqs.

        Raises `UnknownSpace`, `InvalidRequest`, and `UnknownRecord` for a key that the log lacks.
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
        """Erases records: their values leave the log and all projections of it (domain/erasure).

        Each record is erased as a whole or left as it is. An erased record is answered as done.
        Reads the whole log; `report` receives seqs. With `tidies` the database then also frees
        the old versions of the rows.

        Raises the errors of `find_erasable` before any record is erased. After
        `StorageUnavailable` or `OutcomeUnknown` call it again: the erasure resumes.
        """
