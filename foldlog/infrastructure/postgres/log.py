"""The event store on PostgreSQL: pushes in, ranges out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import args_row, tuple_row

from ...domain import proofs
from ...domain.changesets import Push
from ...domain.errors import Unavailable, UnknownSpace
from ...domain.events import LogEntry, short_form
from ...domain.intake import check_cursor
from ...domain.limits import INTEGER_MAX, LIMITS, Limits
from ...domain.ports import EventStore, Range, RangeQuery, Receipt, SpaceId
from ..group_commit import GroupCommit
from ..tails import Tails
from .append import Appender
from .datastore import Datastore
from .errors import translated
from .marks import mark_at

SELECT_SPACE = """
SELECT log::text, head, mark
  FROM spaces
 WHERE space = %(space)s
"""

# The event at `after` comes too, for its mark, and does not count. The window stops a page that
# grows too large: it adds up lengths alone, which are known without reading the states. Whether
# it has stopped it is told by `candidates`, which is then more than the rows that come.
SELECT_PAGE = """
SELECT seq, state, ops_hash, device, candidates
  FROM (
       SELECT seq,
              state,
              ops_hash,
              device,
              count(*) OVER () AS candidates,
              sum(octet_length(state)) FILTER (WHERE seq > %(after)s) OVER (
                  ORDER BY seq ROWS UNBOUNDED PRECEDING
              ) - octet_length(state) AS bytes_before
         FROM (
              SELECT originator_version AS seq,
                     state,
                     ops_hash,
                     CASE WHEN topic LIKE 'changeset/%%' THEN device END AS device
                FROM events
               WHERE originator_id = %(space)s
                 AND originator_version >= %(after)s
                 AND originator_version <= %(through)s
                 AND (
                         %(collections)s::text[] IS NULL
                         OR collections IS NULL
                         OR collections && %(collections)s::text[]
                         OR originator_version = %(after)s
                     )
               ORDER BY originator_version
               LIMIT %(limit)s
              ) candidate
       ) page
 WHERE bytes_before <= %(bytes_max)s
    OR seq = %(after)s
 ORDER BY seq
"""

SELECT_ENTRIES = """
SELECT originator_version, split_part(topic, '/', 1), event_id::text, device::text,
       received_at_ms, collections, state, salt, ops_hash
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version > %(after)s
   AND originator_version <= %(through)s
 ORDER BY originator_version
 LIMIT %(limit)s
"""

ENTRIES_BATCH = 500


class _Row(NamedTuple):
    seq: int
    state: bytes
    ops_hash: bytes
    device: Any
    candidates: int

    @property
    def mark(self) -> str:
        return proofs.mark_of(proofs.header_of(self.state), self.ops_hash)


#: Of the pushes of one group: a transaction that is quick to decide, and a message to PostgreSQL
#: that is far from its limit of 1 GB.
GROUP_BYTES_MAX = 32 * 2**20
#: what an operation costs at least, however few bytes it came in
OPERATION_BYTES = 200


def _weight(push: Push) -> int:
    operations = sum(len(changeset.ops) for changeset in push.changesets)
    return max(push.body_bytes, operations * OPERATION_BYTES)


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
        tails: Tails | None = None,
    ):
        self._datastore = datastore
        self._limits = limits
        self._on_append = on_append
        self.tails = tails or Tails(limits=limits)
        self._appender = Appender(datastore, limits, self.tails.mark_at)
        self._group_commit: GroupCommit[Push, Receipt] = GroupCommit(
            self._append, weigh=_weight, group_weight_max=GROUP_BYTES_MAX
        )

    def close(self) -> None:
        """Returns when every push is answered."""
        self._group_commit.close()

    def submit(self, space: SpaceId, push: Push) -> Future[Receipt]:
        return self._group_commit.submit(space, push)

    def range_at_hand(self, space: SpaceId, query: RangeQuery) -> Range | None:
        return self.tails.range_after(space, query)

    def watch(self, space: SpaceId, on_growth: Callable[[], None]) -> Callable[[], None]:
        return self.tails.watch(space, on_growth)

    def _append(self, space: SpaceId, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        try:
            return self._append_group(space, pushes)
        except Unavailable:
            raise
        except Exception:
            # The database refused what we thought was fine, or the fault is ours. Who is to blame
            # must not take the others along, so each goes alone.
            if len(pushes) == 1:
                raise
            return [self._append_alone(space, push) for push in pushes]

    def _append_group(self, space: SpaceId, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        appended = self._appender.append(space, pushes)
        if appended.entries:
            head = appended.entries[-1].seq
            self.tails.put(
                space,
                appended.log,
                appended.mark_before,
                appended.entries,
                head=head,
                confirmed_at=time.monotonic(),
            )
            self._on_append(space, head)
        return appended.outcomes

    def _append_alone(self, space: SpaceId, push: Push) -> Receipt | Exception:
        try:
            return self._append_group(space, [push])[0]
        except Exception as exc:
            return exc

    def range_after(self, space: SpaceId, query: RangeQuery) -> Range:
        now = time.monotonic()
        with translated(self._datastore), self._datastore.get_connection() as conn:
            log, head, head_mark, rows = self._read_page(conn, space, query)
            was_cut = bool(rows) and rows[0].candidates > len(rows)
            rows = [row for row in rows if row.seq <= head]
            mark = rows.pop(0).mark if rows and rows[0].seq == query.after else ""
            check_cursor(log, head, query.after, query.mark, mark)
            is_full = was_cut or len(rows) >= query.limit
            rows = rows[: query.limit]
            through = query.after
            if rows:
                through, mark = rows[-1].seq, rows[-1].mark
            if query.collections is not None and not is_full:
                # What the filter passed over has been looked at, too.
                scanned = min(query.after + self._limits.page_scan_max, head)
                if scanned > through:
                    through = scanned
                    mark = head_mark if scanned == head else mark_at(conn, space, scanned)
        if through == head:
            self.tails.put(space, log, mark, [], head=head, confirmed_at=now)
        own = query.short_for_device
        events = [
            short_form(row.state) if own is not None and str(row.device) == own else row.state
            for row in rows
        ]
        return Range(log, head, events, through, mark)

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
        self.tails.put(space, log, mark_before, entries, head=head, confirmed_at=now)

    def _read_page(
        self, conn: Connection[Any], space: SpaceId, query: RangeQuery
    ) -> tuple[str, int, str, list[_Row]]:
        """The space, and the event at `after` with those that follow it."""
        scan = self._limits.page_scan_max if query.collections is not None else INTEGER_MAX
        names = {
            "space": space,
            "after": query.after,
            "through": min(query.after + scan, INTEGER_MAX),
            "collections": None if query.collections is None else list(query.collections),
            "limit": query.limit + 1,
            "bytes_max": self._limits.page_bytes_max,
        }
        with conn.pipeline():  # one round trip; the head is read before the events
            of_space = conn.cursor(row_factory=tuple_row)
            of_space.execute(SELECT_SPACE, names, prepare=True)
            of_page = conn.cursor(row_factory=args_row(_Row), binary=True)
            of_page.execute(SELECT_PAGE, names, prepare=True)
            found = of_space.fetchone()
            if found is None:
                raise UnknownSpace(f"there is no space {space!r}")
            return (*found, of_page.fetchall())

    def entries(self, space: SpaceId, *, after: int = 0, through: int) -> Iterator[LogEntry]:
        while after < through:
            names = {"space": space, "after": after, "through": through, "limit": ENTRIES_BATCH}
            with translated(self._datastore), self._datastore.rows() as cursor:
                rows = cursor.execute(SELECT_ENTRIES, names, prepare=True).fetchall()
            if not rows:
                return
            for row in rows:
                yield LogEntry(*row)
            after = rows[-1][0]
