"""Reading the live generation: pages of one statement each, bounded by rows and by bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from foldlog.domain.errors import HistoryUnavailable, LogBehind, ProjectionBehind, UnknownSpace
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import FOLD_VERSION, RecordView
from foldlog.domain.ports import Projected, SpaceId
from foldlog.domain.times import format_time, to_ms
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated

# Every page is one statement and so one snapshot: `projected` is true of its rows.
PAGE = """
SELECT s.log::text, s.head, p.position, p.has_history AND p.fold_version = {fold_version}, page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL ({page}) page ON true
 WHERE s.space = %(space)s
 ORDER BY {order}
"""

# The rows of `candidates` up to `bytes_max` (null: all of them), but the first one in any case.
# Large values are kept compressed and aside: the inner sum is of stored sizes, which are known
# without reading them, so that the outer one, which has to read what it measures, reads no more
# than about a page.
_BOUNDED = """
        SELECT number_of_candidates, {columns}
          FROM (
               SELECT *, sum({size}) OVER (ORDER BY place) AS bytes_through
                 FROM (
                      SELECT *,
                             count(*) OVER () AS number_of_candidates,
                             row_number() OVER in_order AS place,
                             sum({stored_size}) OVER in_order AS stored_through
                        FROM ({candidates}) candidate
                      WINDOW in_order AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
                      ) measured
                WHERE coalesce(stored_through <= %(bytes_max)s::bigint, true) OR place = 1
               ) read
         WHERE coalesce(bytes_through <= %(bytes_max)s::bigint, true) OR place = 1
"""

AFTER_ALL_NAMES = "~"  # collections are named by letters, digits and - _ .
VIEW = "collection, id, fields, is_deleted, last_modified, seq, created_seq"

SELECT_POSITION = """
SELECT position, stopped_at IS NOT NULL
  FROM projections
 WHERE space = %(space)s
   AND projection = 'master'
   AND is_live
 ORDER BY position
"""


def page_of(page: str, order: str) -> str:
    return PAGE.format(page=page, order=order, fold_version=FOLD_VERSION)


def bounded(columns: str, values: tuple[str, ...], candidates: str, order: str) -> str:
    page = _BOUNDED.format(
        columns=columns,
        size=" + ".join(f"octet_length({value}::text)" for value in values),
        stored_size=" + ".join(f"pg_column_size({value})" for value in values),
        candidates=candidates,
        order=order,
    )
    return page_of(page, order)


class Found(msgspec.Struct):
    log: str
    head: int
    position: int
    #: how many rows there were before some were cut off, because a page must not grow too large
    candidates: int
    rows: list[Any]


class LiveReader:
    """Asks the live generation."""

    def __init__(self, datastore: Datastore, *, limits: Limits = LIMITS):
        self._datastore = datastore
        self._limits = limits

    def position(self, space: SpaceId) -> Projected:
        with translated(self._datastore), self._datastore.rows() as cursor:
            found = cursor.execute(SELECT_POSITION, {"space": space}, prepare=True).fetchone()
        if found is None:
            raise UnknownSpace(space)
        return Projected(*found)

    def _page(
        self,
        statement: str,
        space: SpaceId,
        names: dict[str, Any],
        limit: int,
        at_least: int,
        *,
        is_bounded: bool = True,
        needs_history: bool = False,
    ) -> Found:
        """One row more than `limit`, which tells whether another page follows."""
        bytes_max = self._limits.page_bytes_max if is_bounded else None
        names = {**names, "limit": limit + 1, "bytes_max": bytes_max}
        return self._select(statement, space, names, at_least, needs_history=needs_history)

    def _select(
        self,
        statement: str,
        space: SpaceId,
        names: dict[str, Any],
        at_least: int = 0,
        *,
        needs_history: bool = False,
    ) -> Found:
        """Raises `ProjectionBehind` if the projection has not come to `at_least`."""
        with translated(self._datastore), self._datastore.rows() as cursor:
            rows = cursor.execute(statement, {"space": space, **names}, prepare=True).fetchall()
        if not rows:
            raise UnknownSpace(space)
        log, head, position, has_history = rows[0][:4]
        if needs_history and not has_history:
            raise HistoryUnavailable()
        if at_least > head:
            raise LogBehind(f"seq {at_least} is beyond the log's head {head}", head=head)
        if position < at_least:
            raise ProjectionBehind(
                f"the master table is at {position}, not yet at {at_least}",
                awaited=at_least,
                projected=position,
                head=head,
            )
        there = [row for row in rows if row[4] is not None]
        candidates = there[0][4] if there else 0
        return Found(log, head, position, candidates, [row[5:] for row in there])


def view_of_row(row: Any) -> RecordView:
    """Of a row that begins with `VIEW`."""
    collection, id, fields, is_deleted, last_modified, seq, created_seq = row[:7]
    return RecordView(
        collection,
        id,
        msgspec.Raw(fields),
        is_deleted,
        format_time(to_ms(last_modified)),
        seq,
        created_seq,
    )
