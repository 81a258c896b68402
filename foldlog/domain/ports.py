"""What the product needs from outside, written from its own need.

Two implementations of each pass the same contract (tests/contract): PostgreSQL, and memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from . import merkle
from .access import Device, Grant, Token
from .changesets import LocalIds, Push
from .collections import Definition, Outcome, Proposal, Version
from .erasure import Erasable, Erased, Selection
from .errors import BeyondTree, DeviceRevoked, FoldlogError, InvalidRequest, LogBehind, LogChanged
from .events import LogEntry
from .history import Order, Point
from .ledger import ALL_CONFLICTS, ConflictsFilter
from .limits import INTEGER_MAX, LIMITS, Limits
from .merge import Key
from .push_decider import Answer
from .skipping import Skipped
from .snapshot import SnapshotHeader

SpaceId = str
Progress = Callable[[int, int], None]  #: told how far it has come, and of how much
T = TypeVar("T")
#: why a token is revoked that was granted for some of its spaces only
GRANT_FAILED = "the grant failed in another space"


def encode_cursor(*parts: str | int) -> str:
    """Where the next page starts, as text that says nothing to a client."""
    return urlsafe_b64encode(msgspec.json.encode(parts)).rstrip(b"=").decode()


_STRANGE_CURSOR = "this cursor is not one that an earlier page gave"


def decode_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """The parts of a cursor. Raises `InvalidRequest` for one that we did not make."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        parts: tuple[Any, ...] = msgspec.json.decode(raw, type=tuple[types])  # type: ignore[valid-type]
    except (ValueError, msgspec.MsgspecError) as exc:
        raise InvalidRequest(_STRANGE_CURSOR) from exc
    # A made-up cursor must not reach a database with what its types cannot hold.
    if not all(map(_can_be_stored, parts)):
        raise InvalidRequest(_STRANGE_CURSOR)
    return parts


def _can_be_stored(part: str | int | UUID) -> bool:
    if isinstance(part, str):
        return "\0" not in part
    return isinstance(part, UUID) or 0 <= part <= INTEGER_MAX


class Receipt(msgspec.Struct):
    """The answer to a push."""

    log: str
    head: int
    verdicts: list[Answer]


class RangeQuery(msgspec.Struct, frozen=True):
    """The events after `after`, at most `limit` of them."""

    after: int
    limit: int
    mark: str | None = None
    #: only changesets that touch one of these, and every event of another kind
    collections: Sequence[str] | None = None
    #: this device's own changesets come in the short form
    short_for_device: str | None = None
    #: for who takes smaller pages than `page_bytes_max`
    bytes_max: int = INTEGER_MAX

    def page_bytes_max(self, limits: Limits) -> int:
        """Beyond which its pages do not grow, but by their last event."""
        return min(self.bytes_max, limits.page_bytes_max)


class Range(msgspec.Struct):
    """A page of the log. `events` are the stored bytes, to be joined."""

    log: str
    head: int
    events: list[bytes]
    #: the last seq that was looked at: the next cursor, with its mark
    through: int
    mark: str

    @property
    def more(self) -> bool:
        return self.through < self.head


class RecordsQuery(msgspec.Struct, frozen=True):
    """A page of the master table.

    Without `changed_after`: the live records, by (collection, id). With it: every record whose
    state moved after that seq, collapsed to what it is now, tombstones too, by seq; such a page
    never splits a seq.
    """

    limit: int
    collection: str | None = None
    changed_after: int | None = None
    cursor: str | None = None
    at_least: int = 0


class RecordsPage(msgspec.Struct):
    """`records` are JSON documents as bytes; `projected` is the seq that the page is true at."""

    log: str
    head: int
    projected: int
    records: list[bytes]
    cursor: str | None


class ConflictsPage(msgspec.Struct):
    log: str
    head: int
    projected: int
    conflicts: list[bytes]
    cursor: str | None


class LocalIdsPage(msgspec.Struct):
    ids: LocalIds
    cursor: str | None


class SnapshotPage(msgspec.Struct):
    """`records` are `SnapshotRecord`s as JSON, in the order of keys, all of them true at seq `at`.

    With `cursor` another snapshot goes on after them; it is `None` at the end.
    """

    records: list[bytes]
    at: int
    mark: str  #: of event `at`: which history the records are of
    cursor: str | None


class Snapshot(msgspec.Struct):
    """`header.records` is for a progress bar: records come and go meanwhile."""

    header: SnapshotHeader
    pages: Iterator[SnapshotPage]


class SnapshotCursor(NamedTuple):
    """Where a snapshot goes on: after this record, on this history, and not before seq `at`."""

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
        """Raises `LogChanged` or `LogBehind`: pages of two histories do not fit together.

        `mark_there` is the log's own mark at `at`.
        """
        if self.log and self.log != log:
            raise LogChanged("this snapshot was begun on another log", log=log, head=head)
        if self.at > head:
            raise LogBehind(f"this snapshot has come to {self.at}", log=log, head=head)
        if self.mark != mark_there:
            raise LogChanged(f"the mark at {self.at} is another one here", log=log, head=head)


class AsOfQuery(msgspec.Struct, frozen=True):
    """The live records as they were at a moment: by collection, and in the order they were made.

    The pages of one cursor are of one moment.
    """

    moment: Point
    limit: int
    collection: str | None = None
    cursor: str | None = None
    at_least: int = 0


class Projected(NamedTuple):
    """How far the master table has come."""

    position: int
    is_stopped: bool  #: at an event that cannot be projected: it is of no use to wait


class AsOfPage(RecordsPage):
    as_of: int


class HistoryQuery(msgspec.Struct, frozen=True):
    """The versions of one record."""

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
    """The records that are others at `to` than they were at `start`.

    A page may be empty although another one follows: so many events were looked at in vain.
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


class Page(msgspec.Struct, Generic[T]):
    items: list[T]
    cursor: str | None


class Gauge(NamedTuple):
    """A number that an operator watches. Its name says its unit, and is for ever."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = {}


class Registry(ABC):
    """The devices and tokens of each space. What changes them is an event in the space's log.

    Tokens of `EVERY_SPACE` are of no log: they are an operator's. A revocation is known to every
    process at once for pushes by the device, and for the rest `CALLER_SECONDS_MAX` (api/access.py)
    later at most. All that changes something raises `StorageUnavailable` and `OutcomeUnknown`.
    """

    @abstractmethod
    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        """The token of this digest that is for the space, or for every space, revoked or not."""

    @abstractmethod
    def is_revoked(self, space: SpaceId, device: str) -> bool:
        """Whether the device was."""

    @abstractmethod
    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        """Grants a token, registers its device, and makes the space if there is none.

        The same `id` in several spaces is one token. Raises `DeviceRevoked`.
        """

    def grant_all(
        self, spaces: Iterable[SpaceId], id: str, digest: bytes, grant: Grant, by: str | None
    ) -> list[Token]:
        """Grants one token for each of these spaces: for all of them, or for none.

        Each space is a transaction of its own; if one fails, what was granted is revoked again.
        Raises what `grant` raises.
        """
        wanted = list(dict.fromkeys(spaces))
        for space in wanted:
            if grant.device is not None and self.is_revoked(space, grant.device):
                raise DeviceRevoked(f"the device {grant.device} was revoked")
        granted: list[Token] = []
        try:
            for space in wanted:
                granted.append(self.grant(space, id, digest, grant, by))
        except BaseException:
            # Also where it failed: what became of a commit may be unknown.
            for space in wanted[: len(granted) + 1]:
                with suppress(FoldlogError):
                    self.revoke_token(space, id, reason=GRANT_FAILED, by=by)
            raise
        return granted

    @abstractmethod
    def grant_first(self, digest: bytes, grant: Grant, by: str) -> Token | None:
        """Grants the token `FIRST_TOKEN` of every space, if no admin of every space ever was.

        However many do it at once, one grants it; the others get `None`.
        """

    @abstractmethod
    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        """For this space alone; the second time nothing happens. Raises `UnknownToken`."""

    @abstractmethod
    def spaces_of(self, id: str) -> list[SpaceId]:
        """Where a token of this id was ever granted, by name. For an operator, never a request."""

    @abstractmethod
    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        """Those of this space, in the order in which they were granted.

        Raises `InvalidRequest` for a strange cursor.
        """

    def tokens(self, space: SpaceId) -> list[Token]:
        """All of them. For an operator, never a request."""
        return _all(partial(self.tokens_page, space))

    @abstractmethod
    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        """Registers a device, and makes the space if there is none. The second time under the same
        name nothing happens. Raises `DeviceRevoked`.
        """

    @abstractmethod
    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        """For ever: it may do nothing in this space any more, whatever token it holds.

        It need not be known. The second time nothing happens. Raises `UnknownSpace`.
        """

    @abstractmethod
    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        """Those that were registered or revoked, or have pushed, by id.

        Raises `UnknownSpace`, `InvalidRequest` for a strange cursor.
        """

    def devices(self, space: SpaceId) -> list[Device]:
        """All of them. For an operator, never a request. Raises `UnknownSpace`."""
        return _all(partial(self.devices_page, space))


def _all(page_of: Callable[..., Page[T]]) -> list[T]:
    page = page_of(limit=LIMITS.page_records_max, cursor=None)
    found = page.items
    while page.cursor is not None:
        page = page_of(limit=LIMITS.page_records_max, cursor=page.cursor)
        found += page.items
    return found


class EventStore(ABC):
    """The append-only logs of all spaces."""

    def push(self, space: SpaceId, push: Push) -> Receipt:
        """Appends what is new of a push, and answers all of it. Makes the space if there is none.

        Returns after the commit. Raises what `PushDecider.take` raises, `StorageUnavailable`,
        `OutcomeUnknown`, and `ProjectionBehind` if guards cannot be decided now.
        """
        return self.submit(space, push).result()

    @abstractmethod
    def submit(self, space: SpaceId, push: Push) -> Future[Receipt]:
        """Begins a `push`, without waiting for it. Raises `RateLimited` if too much waits."""

    @abstractmethod
    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        """A page of the log. Raises `UnknownSpace`, `LogBehind` or `LogChanged`."""

    @abstractmethod
    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        """The same without waiting for anything, or `None`: then it must be asked for.

        It may lack, for moments, what another process appended; it never refuses a cursor.
        """

    @abstractmethod
    def cached_head(self, space: SpaceId) -> int | None:
        """The log's head as `cached_range` would tell it, or `None`."""

    @abstractmethod
    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        """Has `on_growth` called, from any thread, when the space's log has grown.

        Soon after, and perhaps once in vain. Returns what ends it.
        """

    @abstractmethod
    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        """Steps over an event at which the master table stands still (domain/skipping).

        Raises `UnknownSpace`, `NotStopped`, `InvalidRequest`, `StorageUnavailable`,
        `OutcomeUnknown`.
        """

    @abstractmethod
    def skipped(self, space: SpaceId) -> frozenset[int]:
        """The events that every fold passes over, by their seqs."""

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
        """A version of a collection's definition, the last one by default; and which there are.

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
        """Defines a collection; makes the space if there is none. A known schema changes nothing.

        Looks through what is stored, for so many seconds at most, where the schema alone does not
        tell that all of it fits; `report` is told how many records that were. Raises
        `VersionConflict`, `SchemaNotAdditive`, `SchemaViolated`, `LimitExceeded`,
        `ProjectionBehind`, `StorageUnavailable`, `OutcomeUnknown`.
        """

    @abstractmethod
    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        """The records that are asked for. Goes over the whole log, and reports seqs.

        Raises `UnknownSpace`, `InvalidRequest`, and `UnknownRecord` for a key of no event.
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
        """Erases records: their values leave the log and all that is made of it (domain/erasure).

        Each one wholly or not at all. What is erased already is answered as done. Goes over the
        whole log, reporting seqs. Raises as `find_erasable`, then nothing is erased;
        `StorageUnavailable` or `OutcomeUnknown`: erase again, which goes on. With `tidies` the
        database then gives up the rows as they were before.
        """


class History(ABC):
    """What was: every question is answered from the versions of records, whatever came later.

    A moment beyond the log is `LogBehind`; one that is not projected yet, or `at_least`, is
    `ProjectionBehind`, which says what to wait for. Raises `HistoryUnavailable` for a space whose
    versions were never kept, and `UnknownSpace`, `InvalidRequest` as `MasterTable.page`.
    """

    @abstractmethod
    def position(self, space: SpaceId) -> Projected:
        """For who waits: it is looked at often, so it must cost little. Raises `UnknownSpace`."""

    @abstractmethod
    def as_of(self, space: SpaceId, query: AsOfQuery) -> AsOfPage:
        """The records that were live."""

    @abstractmethod
    def record_as_of(
        self, space: SpaceId, key: Key, moment: Point, *, at_least: int = 0
    ) -> AsOfPage:
        """A page of one record, or its tombstone. `UnknownRecord` if it had never been."""

    @abstractmethod
    def history(self, space: SpaceId, key: Key, query: HistoryQuery) -> HistoryPage:
        """What became of a record, event by event. `UnknownRecord` if it never was."""

    @abstractmethod
    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        """`InvalidRequest` if `start` is after `to`."""


class MasterTable(History):
    """The current records, the conflict ledger and the local ids: the fold of the log."""

    @abstractmethod
    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        """Raises `UnknownSpace`, `InvalidRequest` for a strange cursor, `ProjectionBehind`.

        Nothing waits for `at_least`. One beyond the log is `LogBehind`, here and in all that
        follows.
        """

    @abstractmethod
    def record(self, space: SpaceId, key: Key, *, at_least: int = 0) -> RecordsPage:
        """A page of one record. Raises `UnknownRecord` if it never was, else as `page`."""

    @abstractmethod
    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        """What a new device loads: every record that ever was, tombstones too (domain/snapshot).

        The first page is read before this returns, each further one when it is asked for; nothing
        is held in between. Raises as `page`, and `LogBehind` or `LogChanged` if `cursor` is of
        another history; so do the pages.
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
        """A page of the ids that were made from this device's own keys, by collection and key."""


class TreeHead(NamedTuple):
    """The tree over a log, as far as it has grown."""

    log: str
    size: int


class InclusionProof(NamedTuple):
    """That an event is in the tree of `size`."""

    log: str
    seq: int
    size: int
    root: bytes
    path: list[bytes]


class ConsistencyProof(NamedTuple):
    """That the tree of `new` begins with the one of `old`."""

    log: str
    old: int
    new: int
    old_root: bytes
    new_root: bytes
    path: list[bytes]


class ProofTree(ABC):
    """The tree over each log, as tiles, and the checkpoints that are signed of it.

    It follows the log; what it has not come to yet is not there.
    """

    @abstractmethod
    def tree(self, space: SpaceId) -> TreeHead:
        """Raises `UnknownSpace`."""

    @abstractmethod
    def tiles(self, space: SpaceId, wanted: Sequence[merkle.Tile]) -> dict[merkle.Tile, bytes]:
        """What there is of these tiles, at least as much as a tree of `tree(space)` has."""

    @abstractmethod
    def checkpoint(self, space: SpaceId) -> bytes:
        """The last one that was published, as a signed note. Raises `NoCheckpoint`."""

    @abstractmethod
    def publish(self, space: SpaceId, log: str, size: int, note: bytes) -> None:
        """Has it answered from now on, if that is still the space's log.

        Whether it may be is for the signer to know.
        """

    def inclusion(self, space: SpaceId, seq: int, size: int | None = None) -> InclusionProof:
        """In the tree of `size`, else in all of it. Raises `BeyondTree`."""
        head = self._head(space, size)
        if not 1 <= seq <= head.size:
            raise BeyondTree(f"a tree of {head.size} has no event {seq}")
        spans = [merkle.Span(0, head.size), *merkle.inclusion_spans(seq - 1, head.size)]
        root, *path = merkle.hashes_of(spans, lambda wanted: self.tiles(space, wanted))
        return InclusionProof(head.log, seq, head.size, root, path)

    def consistency(self, space: SpaceId, old: int, new: int | None = None) -> ConsistencyProof:
        """From one size to another, else to all of it. Raises `BeyondTree`."""
        head = self._head(space, new)
        if not 0 <= old <= head.size:
            raise BeyondTree(f"a tree of {head.size} does not begin with one of {old}")
        spans = merkle.consistency_spans(old, head.size)
        both = [merkle.Span(0, old), merkle.Span(0, head.size), *spans]
        old_root, new_root, *path = merkle.hashes_of(both, lambda wanted: self.tiles(space, wanted))
        return ConsistencyProof(head.log, old, head.size, old_root, new_root, path)

    def _head(self, space: SpaceId, size: int | None) -> TreeHead:
        head = self.tree(space)
        if size is None:
            return head
        if size > head.size:
            raise BeyondTree(f"the tree has come to {head.size}", size=head.size)
        return TreeHead(head.log, size)
