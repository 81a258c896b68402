"""Reads pages from the live generation of the master table.

The number of rows and the number of bytes of a page are limited. Each page is read by one SQL
statement. The file docs/reference/statements.sql shows each of these statements in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from foldlog.domain.errors import (
    FoldlogError,
    HistoryUnavailable,
    LogBehind,
    ProjectionBehind,
    StorageUnavailable,
)
from foldlog.domain.limits import INTEGER_MAX, LIMITS, Limits
from foldlog.domain.merge import FOLD_VERSION, RecordView
from foldlog.domain.ports import AtLeast, Projected, SpaceId
from foldlog.domain.times import format_time, to_ms
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.heads import absent
from foldlog.infrastructure.postgres.log.values import ValuesMoved

from .assembly import Columns, Completer, Source, states_completer

# Every page is one statement and so one snapshot. Its rows are the state at `position`.
_PAGE = """
SELECT s.log::text, s.head, p.position, p.generation,
       coalesce(p.stopped_at, CASE WHEN p.failing_why IS NOT NULL THEN p.position + 1 END),
       p.has_history, p.fold_version = %(fold_version)s,
       page.*
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
  LEFT JOIN LATERAL ({page}) page ON true
 WHERE s.space = %(space)s
 ORDER BY {order}
"""

# The first of `candidates`, and the further ones up to `bytes_max` (NULL means all of them).
# PostgreSQL compresses large values and stores them apart. The inner sum uses the stored sizes,
# which it knows without reading the values. So the outer sum, which reads the values, reads little
# more than one page.
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

AFTER_ALL_NAMES = "~"  # sorts after all names of collections: letters, digits and - _ .
#: the columns of a record as readers see it, and what these leave out
VIEW = "collection, id, fields, is_deleted, last_modified, seq, created_seq, apart"
#: the same columns in the table `records`
STORED_VIEW = VIEW.replace("fields", "own_fields AS fields")
#: completes rows that begin with `VIEW`
complete_views = states_completer(Columns(fields=2, apart=7))
#: attempts of a read whose records are erased meanwhile
ATTEMPTS = 5

SELECT_POSITION = """
SELECT position, stopped_at IS NOT NULL
  FROM projections
 WHERE space = %(space)s
   AND projection = 'master'
   AND is_live
 ORDER BY position
"""


def page_of(page: str, order: str) -> str:
    """Returns an SQL statement that reads a page of rows from the live generation.

    `page` is an SQL query that selects the rows of the page. The first column of `page` must be the
    number of rows that the page would have without a limit of bytes. `order` lists the columns by
    which the rows are sorted. The statement returns seven more columns before those of `page`: the
    log's id, the log's head, the projection's position, the generation's number, the seq at which
    the projection stands still (or `NULL`), whether the generation has the history, and whether
    this version of Foldlog filled the generation.
    """
    return _PAGE.format(page=page, order=order)


def bounded(columns: str, values: tuple[str, ...], candidates: str, order: str) -> str:
    """Returns an SQL statement that reads a page whose size in bytes is limited.

    `candidates` is an SQL query that selects the rows before the limit of bytes is applied.
    `columns` lists the columns to return. `values` lists the large columns. Only their bytes are
    counted as the size of a row. `order` lists the columns by which the rows are sorted.

    The page contains the first rows whose total size is at most the parameter `bytes_max`. If the
    first row alone is larger, the page contains only this row.
    """
    page = _BOUNDED.format(
        columns=columns,
        size=" + ".join(f"octet_length({value}::text)" for value in values),
        stored_size=" + ".join(f"pg_column_size({value})" for value in values),
        candidates=candidates,
        order=order,
    )
    return page_of(page, order)


@dataclass(frozen=True)
class Scope:
    """The space from which a page is read, and two conditions for the live generation of the space.

    If the live generation does not meet a condition, the read raises an error.
    """

    space: SpaceId
    #: the seq that the projection must have reached; `None` means the log's head
    at_least: AtLeast = 0
    #: whether the generation must have the versions of all events
    needs_history: bool = False


class Found(NamedTuple):
    """The result of reading a page: its rows, the log's id and head, and the projection's position.

    All values are from the same moment.
    """

    log: str
    head: int
    position: int
    generation: int
    #: the seq of the event at which the projection stands still, or `UNSET` while it goes on
    halted_at: int | UnsetType
    #: the number of rows before the limit of bytes cut some off
    candidates: int
    rows: list[Any]

    def cut(self, limit: int) -> tuple[list[Any], bool]:
        """Returns a tuple: a list of the first `limit` rows, and whether a next page has more
        rows."""
        rows = self.rows[:limit]
        return rows, self.candidates > len(rows)


class LiveReader:
    """Reads pages from the live generation of the master table.

    This is the base class of the classes that read records, versions, conflicts and snapshots.
    """

    def __init__(self, datastore: Datastore, *, limits: Limits = LIMITS):
        self._datastore = datastore
        self._limits = limits

    def position(self, space: SpaceId) -> Projected:
        found = self._datastore.fetch_one(SELECT_POSITION, {"space": space})
        if found is None:
            raise self._absent(space)
        return Projected(*found)

    def _absent(self, space: SpaceId) -> FoldlogError:
        with self._datastore.reading() as cursor:
            return absent(cursor, space)

    def _page(
        self,
        statement: str,
        scope: Scope,
        params: dict[str, Any],
        limit: int,
        bytes_max: int = INTEGER_MAX,
        *,
        complete: Completer | None = None,
    ) -> Found:
        """Runs a statement that reads up to `limit + 1` rows, and returns a `Found` with the rows.

        The extra row shows the caller that another page follows. The page has at most `bytes_max`
        bytes, and `page_bytes_max`. `complete` puts the values in that the rows leave out, and may
        cut the page where they exceed the limit of bytes.
        """
        most = min(bytes_max, self._limits.page_bytes_max)
        params = {**params, "limit": limit + 1, "bytes_max": most}
        for _ in range(ATTEMPTS):
            found = self._select(statement, scope, params)
            if complete is None or not found.rows:
                return found
            try:
                source = Source(self._datastore, scope.space, found.generation)
                rows = complete(source, found.rows, most)
            except ValuesMoved:
                continue
            return found._replace(rows=rows)
        raise StorageUnavailable("records are erased while they are read")

    def _select(self, statement: str, scope: Scope, params: dict[str, Any]) -> Found:
        """Runs a statement of `page_of` or `bounded`, and returns a `Found` with the rows.

        Raises `UnknownSpace` if the space is unknown, and `SpaceImporting` if the space is being
        imported: it gets its projections when it is whole. Raises `HistoryUnavailable` if
        `scope.needs_history` is set, but the live generation lacks the history or was filled by
        another version of Foldlog. Raises `LogBehind` if the log has not reached the seq
        `scope.at_least`. Raises `ProjectionBehind` if the log has reached this seq but the
        projection has not. The head, for which `None` stands, comes from the same statement.
        """
        params = {**params, "space": scope.space, "fold_version": FOLD_VERSION}
        rows = self._datastore.fetch_all(statement, params)
        if not rows:
            raise self._absent(scope.space)
        log, head, position, generation, halted_at, has_history, is_current = rows[0][:7]
        if scope.needs_history and not (has_history and is_current):
            raise HistoryUnavailable()
        at_least = scope.at_least
        if at_least is None:
            # The projector leaves the generation of another version to a rebuild.
            at_least = head if halted_at is None and is_current else 0
        if at_least > head:
            raise LogBehind(f"seq {at_least} is beyond the log's head {head}", head=head)
        if position < at_least:
            raise ProjectionBehind(
                f"the master table is at {position}, not yet at {at_least}",
                awaited=at_least,
                projected=position,
                head=head,
                **({} if halted_at is None else {"halted_at": halted_at}),
            )
        # A page without rows is one row of NULLs, because of the left join.
        present = [row for row in rows if row[7] is not None]
        candidates = present[0][7] if present else 0
        return Found(
            log=log,
            head=head,
            position=position,
            generation=generation,
            halted_at=UNSET if halted_at is None else halted_at,
            candidates=candidates,
            rows=[row[8:] for row in present],
        )


def view_of_row(row: Any) -> RecordView:
    """Converts a database row to a `RecordView`. The row must begin with the columns of `VIEW`."""
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
