"""The event store on PostgreSQL: pushes in, ranges out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from foldlog.domain import proofs
from foldlog.domain.changesets import Push
from foldlog.domain.collections import Definition, Outcome, Proposal, Version
from foldlog.domain.erasure import Erasable, Erased, Selection
from foldlog.domain.errors import (
    FoldlogError,
    LimitExceeded,
    OutcomeUnknown,
    RateLimited,
    StorageUnavailable,
    UnknownSpace,
)
from foldlog.domain.events import LogEntry, short_form
from foldlog.domain.limits import INTEGER_MAX, LIMITS, Limits
from foldlog.domain.merge import Key
from foldlog.domain.ports import EventStore, Progress, Range, RangeQuery, Receipt, SpaceId
from foldlog.domain.push_decider import check_cursor
from foldlog.domain.skipping import Skipped, is_readable
from foldlog.infrastructure.postgres.append.appender import Appender, Locked
from foldlog.infrastructure.postgres.append.group_commit import GroupCommit, QueueFull
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.log.marks import SELECT_FOR_MARKS, mark_at, marks_of
from foldlog.infrastructure.postgres.log.pages import IN_PLACE_OF_SKIPPED, select_page
from foldlog.infrastructure.postgres.log.tail_cache import LogEnd, LogTailCache
from foldlog.infrastructure.postgres.service_events.collections import Collections
from foldlog.infrastructure.postgres.service_events.erasure import Eraser, vacuum
from foldlog.infrastructure.postgres.service_events.skipping import Skipper

SELECT_SPACE = """
SELECT log::text, head, mark
  FROM spaces
 WHERE space = %(space)s
"""

_PAGE_COLUMNS = f"""originator_version, state, ops_hash,
       device = %(own)s::uuid AND topic LIKE 'changeset/%%' AS is_own,
       {IN_PLACE_OF_SKIPPED} AS in_its_place"""

SELECT_PAGE = select_page(_PAGE_COLUMNS)

SELECT_FILTERED_PAGE = select_page(
    _PAGE_COLUMNS,
    filter="""
   AND (collections IS NULL OR collections && %(collections)s::text[])""",
)

SELECT_ENTRIES = select_page("""
       originator_version, split_part(topic, '/', 1), event_id::text, device::text,
       received_at_ms, collections, state, salt, ops_hash""")

SELECT_SKIPPED = """
SELECT seq
  FROM skipped
 WHERE space = %(space)s
 ORDER BY seq
"""

#: of entries that are read one after another, held at once
ENTRIES_BATCH, ENTRIES_BYTES = 500, 8 * 2**20


class _Found(NamedTuple):
    """What one round trip found of a space."""

    log: str
    head: int
    head_mark: str
    mark_at_cursor: str | None  #: `None`: not asked for
    rows: list[tuple[int, bytes, bytes, bool | None, bytes | None]]  #: of `SELECT_PAGE`


#: Of the pushes of one group: a transaction that is quick to decide, and a message to PostgreSQL
#: that is far from its limit of 1 GB.
GROUP_BYTES_MAX = 32 * 2**20
#: what an operation costs at least, however few bytes it came in
OPERATION_BYTES = 200


def _told(seq: int, state: bytes, is_own: bool | None, in_its_place: bytes | None) -> bytes:
    """An event as a reader is given it."""
    if in_its_place is not None and not is_readable(seq, state):
        return in_its_place
    return short_form(state) if is_own else state


def _weight(push: Push) -> int:
    operations = sum(len(changeset.ops) for changeset in push.changesets)
    return max(push.body_bytes, operations * OPERATION_BYTES)


#: Those of a group that go alone are begun no later than this after the group: with the wait for
#: their turn before, and what the last one takes, they are answered in time.
ALONE_SECONDS_MAX = 2.0


def _goes_alone(outcome: Receipt | Exception) -> bool:
    """Whether another push of the group may be to blame: for a fault that nobody foresaw, or that
    it was too much together."""
    if isinstance(outcome, LimitExceeded):
        return bool(outcome.extra["limit"] == "looked_up_bytes_max")
    return isinstance(outcome, Exception) and not isinstance(outcome, FoldlogError)


#: how far back a tail begins that had to be read
TAIL_EVENTS = 500


class PostgresEventStore(EventStore):
    """Appends by group commit, reads without any lock; what is kept in `tails`, from there.

    `on_append(space, head)` is called after each commit, to wake whoever follows the log.
    """

    def __init__(
        self,
        datastore: Datastore,
        *,
        limits: Limits = LIMITS,
        on_append: Callable[[SpaceId, int], None] = lambda space, head: None,
    ):
        self._datastore = datastore
        self._limits = limits
        self._on_append = on_append
        self.tails = LogTailCache(limits=limits)
        self._appender = Appender(datastore, limits, self.tails.mark_at)
        self._collections = Collections(datastore, self.append_service_event, limits)
        self._group_commit: GroupCommit[Push, Receipt] = GroupCommit(
            self._append,
            weigh=_weight,
            group_weight_max=GROUP_BYTES_MAX,
            waiting_weight_max=limits.waiting_bytes_per_space_max,
        )

    def close(self) -> None:
        """Returns when every push is answered."""
        self._group_commit.close()

    def submit(self, space: SpaceId, push: Push) -> Future[Receipt]:
        try:
            return self._group_commit.submit(space, push)
        except QueueFull:
            limit = self._limits.waiting_bytes_per_space_max
            raise RateLimited("waiting_bytes_per_space_max", limit) from None

    def cached_range(self, space: SpaceId, query: RangeQuery) -> Range | None:
        return self.tails.range_after(space, query)

    def cached_head(self, space: SpaceId) -> int | None:
        return self.tails.head(space)

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        return self.tails.watch(space, on_growth)

    def _append(self, space: SpaceId, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        until = time.monotonic() + ALONE_SECONDS_MAX
        try:
            outcomes = self._append_group(space, pushes)
        except (StorageUnavailable, OutcomeUnknown):
            raise
        except Exception as exc:
            # The database refused what we thought was fine, or the fault is ours. Who is to blame
            # must not take the others along.
            outcomes = [exc] * len(pushes)
        if len(pushes) == 1:
            return outcomes
        return list(self._one_by_one(space, pushes, outcomes, until))

    def _one_by_one(
        self,
        space: SpaceId,
        pushes: Sequence[Push],
        outcomes: Sequence[Receipt | Exception],
        until: float,
    ) -> Iterator[Receipt | Exception]:
        """What became of each push, where those that go alone were appended alone."""
        for push, outcome in zip(pushes, outcomes, strict=True):
            if not _goes_alone(outcome):
                yield outcome
                continue
            alone: Receipt | Exception = StorageUnavailable()
            if time.monotonic() < until:
                alone = self._append_alone(space, push)
            if isinstance(alone, (StorageUnavailable, OutcomeUnknown)):
                until = 0.0  # it would be the same for the others, who wait to be told
            yield alone

    def _append_group(self, space: SpaceId, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        appended = self._appender.append(space, pushes)
        if appended.entries:
            self._appended(space, appended.log, appended.mark_before, appended.entries)
        return appended.outcomes

    def _appended(
        self, space: SpaceId, log: str, mark_before: str, entries: Sequence[LogEntry]
    ) -> None:
        head, now = entries[-1].seq, time.monotonic()
        self.tails.update(space, LogEnd(log, head, entries, mark_before, now))
        self._on_append(space, head)

    def _append_alone(self, space: SpaceId, push: Push) -> Receipt | Exception:
        try:
            return self._append_group(space, [push])[0]
        except Exception as exc:
            return exc

    def append_service_event(
        self,
        space: SpaceId,
        decide: Callable[[Cursor[Any], Locked], LogEntry | None],
        *,
        makes_space: bool = False,
        prepare: Callable[[Cursor[Any]], None] | None = None,
        finish: Callable[[Cursor[Any], LogEntry], None] | None = None,
    ) -> LogEntry | None:
        """Appends an event of the service itself and announces it."""
        with translated(self._datastore):
            locked, entry = self._appender.append_service_event(
                space, decide, makes_space=makes_space, prepare=prepare, finish=finish
            )
        if entry is not None:
            self._appended(space, locked.log, locked.mark, [entry])
        return entry

    def collections(self, space: SpaceId) -> list[Version]:
        return self._collections.current(space)

    def collection(
        self, space: SpaceId, collection: str, version: int | None = None
    ) -> tuple[Definition, list[Version]]:
        return self._collections.definition(space, collection, version)

    def define(
        self,
        space: SpaceId,
        collection: str,
        wanted: Proposal,
        *,
        seconds_max: float | None = None,
        report: Callable[[int], None] = lambda checked: None,
    ) -> Outcome:
        return self._collections.define(
            space, collection, wanted, seconds_max=seconds_max, report=report
        )

    def find_erasable(
        self, space: SpaceId, wanted: Selection, *, report: Progress = lambda done, of: None
    ) -> list[Erasable]:
        return Eraser(self._datastore, self.append_service_event).find(space, wanted, report)

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
        erased = Eraser(self._datastore, self.append_service_event).erase(
            space, keys, reason, by, report
        )
        # Not for what was erased long ago: it goes through the tables of all spaces.
        if tidies and any(one.events for one in erased):
            with translated(self._datastore):
                vacuum(self._datastore.url)
        return erased

    def skip(self, space: SpaceId, seq: int, *, reason: str, by: str | None = None) -> Skipped:
        return Skipper(self.append_service_event).skip(space, seq, reason, by)

    def skipped(self, space: SpaceId) -> frozenset[int]:
        with translated(self._datastore), self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_SKIPPED, {"space": space}).fetchall()
        return frozenset(seq for (seq,) in rows)

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        now = time.monotonic()
        with translated(self._datastore), self._datastore.get_connection() as conn:
            log, head, head_mark, mark_at_cursor, rows = self._read_page(conn, space, query)
            check_cursor(log, head, query.after, query.mark, mark_at_cursor)
            size = sum(len(state) for _, state, *_ in rows)
            is_full = len(rows) == query.limit or size > query.page_bytes_max(self._limits)
            while rows and rows[-1][0] > head:
                rows.pop()  # appended since the head was read
            through, mark = query.after, query.mark
            if rows:
                through, state, ops_hash, *_ = rows[-1]
                mark = proofs.mark_of(proofs.leaf_header_of(state), ops_hash)
            if query.collections is not None and not is_full:
                # What the filter passed over has been looked at, too.
                through = max(through, min(query.after + self._limits.page_scan_max, head))
                mark = None
            if through == head:
                mark = head_mark
                self.tails.update(space, LogEnd(log, head, [], mark, now))
            if mark is None:
                mark = mark_at(conn, space, through)
        events = [
            state if other is None and not own else _told(seq, state, own, other)
            for seq, state, _, own, other in rows
        ]
        return Range(log, head, events, through, mark)

    def _read_page(self, conn: Connection[Any], space: SpaceId, query: RangeQuery) -> _Found:
        is_filtered = query.collections is not None
        scan = self._limits.page_scan_max if is_filtered else INTEGER_MAX
        names = {
            "space": space,
            "after": query.after,
            "through": min(query.after + scan, INTEGER_MAX),
            "collections": list(query.collections or ()),
            "own": query.short_for_device,
            "limit": query.limit,
            "bytes_max": query.page_bytes_max(self._limits),
            "seqs": [query.after],
        }
        with conn.pipeline():  # one round trip; the head is read before the events
            of_space = conn.cursor(row_factory=tuple_row)
            of_space.execute(SELECT_SPACE, names, prepare=True)
            of_cursor = None
            if query.mark is not None:
                of_cursor = conn.cursor(row_factory=tuple_row)
                of_cursor.execute(SELECT_FOR_MARKS, names, prepare=True)
            of_page = conn.cursor(row_factory=tuple_row, binary=True)
            statement = SELECT_FILTERED_PAGE if is_filtered else SELECT_PAGE
            of_page.execute(statement, names, prepare=True)
            found = of_space.fetchone()
            if found is None:
                raise UnknownSpace(space)
            marks = {} if of_cursor is None else marks_of(of_cursor.fetchall())
            log, head, mark = found
            return _Found(log, head, mark, marks.get(query.after), of_page.fetchall())

    def read_on(self, space: SpaceId) -> None:
        """Brings the space's tail to the head, for who waits for it."""
        now = time.monotonic()
        with translated(self._datastore), self._datastore.rows() as cursor:
            found = cursor.execute(SELECT_SPACE, {"space": space}, prepare=True).fetchone()
        if found is None:
            return
        log, head, mark = found
        start, mark_before = self.tails.head_and_mark(space) or (head, mark)
        if not head - TAIL_EVENTS <= start < head:
            start, mark_before = head, mark  # whoever is further behind asks the database
        entries = list(self.entries(space, after=start, through=head))
        self.tails.update(space, LogEnd(log, head, entries, mark_before, now))

    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        while after < through:
            names = {
                "space": space,
                "after": after,
                "through": through,
                "limit": ENTRIES_BATCH,
                "bytes_max": ENTRIES_BYTES,
            }
            with translated(self._datastore), self._datastore.rows() as cursor:
                rows = cursor.execute(SELECT_ENTRIES, names, prepare=True).fetchall()
            if not rows:
                return
            for row in rows:
                yield LogEntry(*row)
            after = rows[-1][0]
