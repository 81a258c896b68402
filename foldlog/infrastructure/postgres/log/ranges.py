"""Reads events of a log from the database, for devices, for streams and for exports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow, tuple_row

from foldlog.domain import proofs
from foldlog.domain.errors import LogIncomplete
from foldlog.domain.events import LogEntry, short_form
from foldlog.domain.limits import INTEGER_MAX, Limits
from foldlog.domain.ports import Range, RangeQuery, SpaceId
from foldlog.domain.push_decider import check_cursor
from foldlog.domain.skipping import is_readable
from foldlog.infrastructure.postgres.connection.datastore import Datastore

from .alarms import LogAlarms, SuspectedHole, check_end
from .heads import absent
from .marks import SELECT_FOR_MARKS, mark_at, marks_of
from .pages import IN_PLACE_OF_SKIPPED, page_params, select_page
from .tail_cache import LogEnd, LogTailCache

SELECT_SPACE = """
SELECT log::text, head, mark
  FROM spaces
 WHERE space = %(space)s
   AND NOT importing
"""

# A filter leaves events out, so its page cannot show that an event is missing.
COUNT_SCANNED = """
SELECT count(*)
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
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

#: the size of a batch of entries in memory
ENTRIES_BATCH, ENTRIES_BYTES = 500, 8 * 2**20
#: a tail that is read from the database has at most this many events
TAIL_EVENTS = 500


class _Page(NamedTuple):
    """The values that the database returns when `RangeReader` reads a page of the log.

    All values are read in one round trip to the database.
    """

    log: str
    head: int
    head_mark: str
    mark_at_cursor: str | None  #: `None` if the reader sent no mark
    rows: list[tuple[int, bytes, bytes, bool | None, bytes | None]]  #: of `SELECT_PAGE`


class RangeReader:
    """Reads pages of a log from the database.

    If a page ends at the head of the log, the reader also stores this head in the tail cache
    (`LogTailCache`).
    """

    def __init__(
        self, datastore: Datastore, limits: Limits, tails: LogTailCache, alarms: LogAlarms
    ):
        self._datastore = datastore
        self._limits = limits
        self._tails = tails
        self._alarms = alarms

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        """Returns a page of the log, which is checked to be complete.

        Raises `LogBehind` or `LogChanged` if the cursor of the query is not of this log. Raises
        `LogIncomplete` if events of the page are missing in the log.
        """
        try:
            return self._range_after(space, query)
        except SuspectedHole as hole:
            self._alarms.confirm(space, hole)
        try:
            return self._range_after(space, query)  # the first look was outdated
        except SuspectedHole as hole:
            self._alarms.confirm_or_retry(space, hole)

    def _range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        log, head, rows, through, mark = self._datastore.read(
            lambda conn: self._checked_page(conn, space, query)
        )
        events = [
            state if placeholder is None and not own else _form(seq, state, own, placeholder)
            for seq, state, _, own, placeholder in rows
        ]
        return Range(log, head, events, through, mark)

    def _checked_page(
        self, conn: Connection[Any], space: SpaceId, query: RangeQuery
    ) -> tuple[str, int, list[TupleRow], int, str]:
        """Returns log, head, rows, the seq that the page reaches, and the mark at this seq."""
        now = time.monotonic()
        log, head, head_mark, mark_at_cursor, rows = self._read_page(conn, space, query)
        if query.mark and mark_at_cursor is None and query.after <= head:
            raise SuspectedHole(query.after - 1, query.after)
        if query.after > head:
            _check_end(conn, space)  # the head may be wrong, and the cursor right
        check_cursor(log, head, query.after, query.mark, mark_at_cursor)
        size = sum(len(state) for _, state, *_ in rows)
        is_full = len(rows) == query.limit or size > query.page_bytes_max(self._limits)
        if rows and rows[-1][0] > head:
            _check_end(conn, space)  # the events beyond the head must be new
            rows = [row for row in rows if row[0] <= head]
            is_full = False  # the page reaches the head
        through, mark = query.after, query.mark
        if rows:
            through, state, ops_hash, *_ = rows[-1]
            mark = proofs.mark_of(proofs.leaf_header_of(state), ops_hash)
        if query.collections is None:
            end = through if is_full else head
            if len(rows) != end - query.after:
                raise SuspectedHole(query.after, end)
        else:
            if not is_full:
                # The page also covers the events that the filter left out.
                through = max(through, min(query.after + self._limits.page_scan_max, head))
            if through > query.after:
                mark = _check_scanned(conn, space, query.after, through)
            if through == head:
                _check_end(conn, space)  # a filter leaves out the events beyond a wrong head
        if through == head:
            mark = head_mark
            self._tails.update(space, LogEnd(log, head, [], mark, now))
        if mark is None:
            mark = mark_at(conn, space, through)
        return log, head, rows, through, mark

    def _read_page(self, conn: Connection[Any], space: SpaceId, query: RangeQuery) -> _Page:
        is_filtered = query.collections is not None
        scan = self._limits.page_scan_max if is_filtered else INTEGER_MAX
        params = {
            **page_params(
                space,
                query.after,
                min(query.after + scan, INTEGER_MAX),
                limit=query.limit,
                bytes_max=query.page_bytes_max(self._limits),
            ),
            "collections": list(query.collections or ()),
            "own": query.short_for_device,
            "seqs": [query.after],
        }
        with conn.pipeline():  # one round trip, which reads the head before the events
            of_space = conn.cursor(row_factory=tuple_row)
            of_space.execute(SELECT_SPACE, params, prepare=True)
            of_cursor = None
            if query.mark is not None:
                of_cursor = conn.cursor(row_factory=tuple_row)
                of_cursor.execute(SELECT_FOR_MARKS, params, prepare=True)
            of_page = conn.cursor(row_factory=tuple_row, binary=True)
            statement = SELECT_FILTERED_PAGE if is_filtered else SELECT_PAGE
            of_page.execute(statement, params, prepare=True)
            found = of_space.fetchone()
            if found is None:
                raise absent(conn.cursor(row_factory=tuple_row), space)
            marks = {} if of_cursor is None else marks_of(of_cursor.fetchall())
            log, head, mark = found
            return _Page(log, head, mark, marks.get(query.after), of_page.fetchall())

    def read_tail(self, space: SpaceId) -> None:
        """Reads the newest events of a space from the database and adds them to the tail cache.

        The method adds at most `TAIL_EVENTS` events. If the cache lacks more events than this, or
        does not contain the space, the method adds only the head to the cache. If the database has
        no such space, the method leaves the cache unchanged. It does so too if events are missing
        in the log; it then raises the alarm, and the readers use the database.
        """
        now = time.monotonic()
        found = self._datastore.fetch_one(SELECT_SPACE, {"space": space})
        if found is None:
            return
        log, head, mark = found
        start, mark_before = self._tails.head_and_mark(space) or (head, mark)
        if not head - TAIL_EVENTS <= start < head:
            start, mark_before = head, mark  # readers further behind use the database
        try:
            entries = list(self.entries(space, after=start, through=head))
        except LogIncomplete:
            self._tails.wake(space)  # each waiting reader learns of the alarm
            return
        self._tails.update(space, LogEnd(log, head, entries, mark_before, now))

    def entries(self, space: SpaceId, *, after: int, through: int) -> Iterator[LogEntry]:
        """Yields the stored events with `after < seq <= through`, without a hole.

        Raises `LogIncomplete` if one of them is missing in the log.
        """
        while after < through:
            params = page_params(
                space, after, through, limit=ENTRIES_BATCH, bytes_max=ENTRIES_BYTES
            )
            rows = self._datastore.fetch_all(SELECT_ENTRIES, params)
            if not rows:
                self._alarms.confirm(space, SuspectedHole(after, through))
                return  # `through` is beyond the head
            if rows[-1][0] - after != len(rows):
                self._alarms.confirm_or_retry(space, SuspectedHole(after, rows[-1][0]))
            for row in rows:
                yield LogEntry(*row)
            after = rows[-1][0]


def _check_end(conn: Connection[Any], space: SpaceId) -> None:
    """Checks that the log ends at its head, in one snapshot. Raises `SuspectedHole` otherwise."""
    check_end(conn.cursor(row_factory=tuple_row), space)


def _check_scanned(conn: Connection[Any], space: SpaceId, after: int, through: int) -> str:
    """Checks that no event is missing in the range that a filter has scanned.

    Returns the mark at `through`. Raises `SuspectedHole` if events are missing.
    """
    params = {"space": space, "after": after, "through": through, "seqs": [through]}
    with conn.pipeline():
        counted = conn.cursor(row_factory=tuple_row).execute(COUNT_SCANNED, params, prepare=True)
        last = conn.cursor(row_factory=tuple_row).execute(SELECT_FOR_MARKS, params, prepare=True)
    if counted.fetchone() != (through - after,):
        raise SuspectedHole(after, through)
    return marks_of(last.fetchall())[through]


def _form(seq: int, state: bytes, is_own: bool | None, placeholder: bytes | None) -> bytes:
    """Returns the bytes that a reader receives for an event. `state` is the stored event.

    For most events the result is `state`. If the event is a changeset of the reader's own device
    (`is_own`), the result is shorter (see `short_form`), because the device already has the
    operations. `placeholder` is `None` unless an operator has skipped the event. If the skipped
    event is unreadable, the result is `placeholder`: a JSON event of the kind `skipped`.
    """
    if placeholder is not None and not is_readable(seq, state):
        return placeholder
    return short_form(state) if is_own else state
