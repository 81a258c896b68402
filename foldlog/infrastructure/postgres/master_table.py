"""The questions that the master table answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from psycopg.rows import tuple_row

from ...domain.changesets import LocalIds
from ...domain.errors import LogBehind, ProjectionBehind, UnknownRecord, UnknownSpace
from ...domain.limits import LIMITS, Limits
from ...domain.merge import Key, RecordView
from ...domain.ports import (
    ConflictsPage,
    MasterTable,
    RecordsPage,
    RecordsQuery,
    Snapshot,
    SnapshotPage,
    SnapshotPlace,
    SpaceId,
    decode_cursor,
    encode_cursor,
)
from ...domain.snapshot import SnapshotHeader, SnapshotRecord
from ...domain.times import format_time, to_ms
from .datastore import Datastore
from .errors import translated
from .marks import mark_at

# Every page is one statement and so one snapshot: `projected` is true of its rows.
_PAGE = """
SELECT s.log::text, s.head, p.position, page.*
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


def _bounded(columns: str, values: tuple[str, ...], candidates: str, order: str) -> str:
    page = _BOUNDED.format(
        columns=columns,
        size=" + ".join(f"octet_length({value}::text)" for value in values),
        stored_size=" + ".join(f"pg_column_size({value})" for value in values),
        candidates=candidates,
        order=order,
    )
    return _PAGE.format(page=page, order=order)


_AFTER_ALL_NAMES = "~"  # collections are named by letters, digits and - _ .
_VIEW = "collection, id, fields, is_deleted, last_modified, seq, created_seq"

# `<> 0` is meant: with `> 0` the planner may take the index by seq, which has only those, but in
# another order, and would read all of it for every page.
SELECT_LIVE = _bounded(
    _VIEW,
    ("fields",),
    f"""
        SELECT {_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND NOT is_deleted
           AND created_seq <> 0
           AND collection BETWEEN %(first_collection)s AND %(last_collection)s
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    """,
    order="collection, id",
)

# WITH TIES: all records of the page's last seq come with it, so that a seq is never split.
SELECT_CHANGED = _bounded(
    _VIEW,
    ("fields",),
    f"""
        SELECT {_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND (%(collection)s::text IS NULL OR collection = %(collection)s)
           AND seq > %(changed_after)s
         ORDER BY seq
         FETCH FIRST %(limit)s ROWS WITH TIES
    """,
    order="seq, collection, id",
)

SELECT_ONE = _PAGE.format(
    page=f"""
        SELECT 1 AS number_of_candidates, {_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND collection = %(collection)s
           AND id = %(id)s
    """,
    order="collection, id",
)

SELECT_SNAPSHOT = _bounded(
    f"{_VIEW}, writes, deleted, erased_seq",
    ("fields", "writes"),
    f"""
        SELECT {_VIEW}, writes, deleted,
               (
                   SELECT x.seq
                     FROM erasures x
                    WHERE s.erased_seq > 0
                      AND x.space = r.space
                      AND x.collection = r.collection
                      AND x.id = r.id
               ) AS erased_seq
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq <> 0
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    """,
    order="collection, id",
)

COUNT_SNAPSHOT = """
SELECT count(*)
  FROM records r
  JOIN projections p
    ON p.space = r.space AND p.generation = r.generation
 WHERE r.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND r.created_seq > 0
   AND (r.collection, r.id) > (%(after_collection)s, %(after_id)s)
"""

SELECT_CONFLICTS = _bounded(
    "seq, number, document",
    ("document",),
    """
        SELECT seq, number, document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
         ORDER BY seq, number
         LIMIT %(limit)s
    """,
    order="seq, number",
)

SELECT_LOCAL_IDS = _PAGE.format(
    page="""
        SELECT 1 AS number_of_candidates, collection, local_id, id
          FROM local_ids l
         WHERE l.space = p.space
           AND l.generation = p.generation
           AND l.device = %(device)s::uuid
    """,
    order="collection, local_id",
)

#: How long a read that waits for its projection sleeps between looks: first, and at most.
WAIT_MS_FIRST, WAIT_MS_MAX = 5, 100

_encode = msgspec.json.encode


class PostgresMasterTable(MasterTable):
    """Reads the live generation. `sleep` is between looks; tests hand in something quicker."""

    def __init__(
        self,
        datastore: Datastore,
        *,
        limits: Limits = LIMITS,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._datastore = datastore
        self._limits = limits
        self._sleep = sleep

    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        if query.changed_after is None:
            return self._live_page(space, query)
        return self._changed_page(space, query, query.changed_after)

    def _live_page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        after = decode_cursor(query.cursor, str, str) if query.cursor else ("", "")
        names = {
            "first_collection": query.collection or "",
            "last_collection": query.collection or _AFTER_ALL_NAMES,
            "after_collection": after[0],
            "after_id": after[1],
        }
        found = self._page(SELECT_LIVE, space, names, query.limit, query.at_least)
        rows = found.rows[: query.limit]
        more = found.candidates > len(rows)
        return _records_page(found, rows, encode_cursor(*rows[-1][:2]) if more else None)

    def _changed_page(self, space: SpaceId, query: RecordsQuery, after: int) -> RecordsPage:
        if query.cursor:
            (after,) = decode_cursor(query.cursor, int)
        names = {"collection": query.collection, "changed_after": after}
        found = self._page(SELECT_CHANGED, space, names, query.limit, query.at_least)
        rows, more = found.rows, found.candidates > query.limit
        if len(rows) < found.candidates or len(rows) > query.limit:
            # Cut by its bytes, or one more than asked has come: without its last seq it is whole.
            more = True
            rows = [row for row in rows if row[5] != rows[-1][5]]
        if not rows and found.rows:
            # One seq alone is larger than a page: it comes whole all the same.
            found = self._page(SELECT_CHANGED, space, names, 0, query.at_least, is_bounded=False)
            rows = found.rows
        return _records_page(found, rows, encode_cursor(rows[-1][5]) if more else None)

    def record(self, space: SpaceId, key: Key, *, at_least: int = 0) -> RecordsPage:
        names = {"collection": key[0], "id": key[1]}
        found = self._select(SELECT_ONE, space, names, at_least)
        if not found.rows:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}, and never was")
        return _records_page(found, found.rows, None)

    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        place = SnapshotPlace.of(cursor)
        names = {"space": space, "after_collection": place.collection, "after_id": place.id}
        found, page = self._snapshot_page(space, place, at_least)
        with translated(self._datastore), self._datastore.get_connection() as conn:
            counted = conn.cursor(row_factory=tuple_row).execute(COUNT_SNAPSHOT, names).fetchone()
        assert counted is not None
        header = SnapshotHeader(found.log, page.at, page.mark, records=counted[0])
        return Snapshot(header, self._snapshot_pages(space, page))

    def _snapshot_pages(self, space: SpaceId, page: SnapshotPage) -> Iterator[SnapshotPage]:
        yield page
        while page.cursor is not None:
            _, page = self._snapshot_page(space, SnapshotPlace.of(page.cursor), 0)
            yield page

    def _snapshot_page(
        self, space: SpaceId, place: SnapshotPlace, at_least: int
    ) -> tuple[_Found, SnapshotPage]:
        limit = self._limits.page_snapshot_records
        names = {"after_collection": place.collection, "after_id": place.id}
        found = self._page(SELECT_SNAPSHOT, space, names, limit, at_least)
        place.check(found.log, found.head, self._mark(space, min(place.at, found.head)))
        if found.position < place.at:  # pages never go back in time
            found = self._page(SELECT_SNAPSHOT, space, names, limit, place.at)
        rows = found.rows[:limit]
        more = found.candidates > len(rows)
        mark = self._mark(space, found.position)
        last = SnapshotPlace(found.log, found.position, mark, *rows[-1][:2]) if more else None
        lines = [_snapshot_document(row) for row in rows]
        return found, SnapshotPage(lines, found.position, mark, last and last.cursor)

    def _mark(self, space: SpaceId, seq: int) -> str:
        with translated(self._datastore), self._datastore.get_connection() as conn:
            return mark_at(conn, space, seq)

    def conflicts(
        self, space: SpaceId, *, limit: int, cursor: str | None, at_least: int = 0
    ) -> ConflictsPage:
        after = decode_cursor(cursor, int, int) if cursor else (0, 0)
        names = {"after_seq": after[0], "after_number": after[1]}
        found = self._page(SELECT_CONFLICTS, space, names, limit, at_least)
        rows = found.rows[:limit]
        more = found.candidates > len(rows)
        return ConflictsPage(
            found.log,
            found.head,
            found.position,
            [row[2] for row in rows],
            encode_cursor(*rows[-1][:2]) if more else None,
        )

    def local_ids(self, space: SpaceId, device: str, *, at_least: int = 0) -> LocalIds:
        ids: LocalIds = {}
        found = self._select(SELECT_LOCAL_IDS, space, {"device": device}, at_least)
        for collection, local_id, id in found.rows:
            ids.setdefault(collection, {})[local_id] = id
        return ids

    def _page(
        self,
        statement: str,
        space: SpaceId,
        names: dict[str, Any],
        limit: int,
        at_least: int,
        *,
        is_bounded: bool = True,
    ) -> _Found:
        """One row more than `limit`, which tells whether another page follows."""
        bytes_max = self._limits.page_bytes_max if is_bounded else None
        names = {**names, "limit": limit + 1, "bytes_max": bytes_max}
        return self._select(statement, space, names, at_least)

    def _select(
        self, statement: str, space: SpaceId, names: dict[str, Any], at_least: int = 0
    ) -> _Found:
        """Asks, and asks again until the projection has reached `at_least`."""
        deadline = time.monotonic() + self._limits.at_least_wait_seconds_max
        wait_ms = WAIT_MS_FIRST
        while True:
            with translated(self._datastore), self._datastore.rows() as cursor:
                rows = cursor.execute(statement, {"space": space, **names}, prepare=True).fetchall()
            if not rows:
                raise UnknownSpace(f"there is no space {space!r}")
            log, head, position = rows[0][:3]
            if at_least > head:
                raise LogBehind(f"at_least {at_least} is beyond the log's head {head}", head=head)
            if position >= at_least:
                there = [row for row in rows if row[3] is not None]
                candidates = there[0][3] if there else 0
                return _Found(log, head, position, candidates, [row[4:] for row in there])
            if time.monotonic() > deadline:
                raise ProjectionBehind(
                    f"the master table is at {position}, not yet at {at_least}",
                    projected=position,
                    head=head,
                )
            self._sleep(wait_ms / 1000)
            wait_ms = min(2 * wait_ms, WAIT_MS_MAX)


class _Found(msgspec.Struct):
    log: str
    head: int
    position: int
    #: how many rows there were before some were cut off, because a page must not grow too large
    candidates: int
    rows: list[Any]


def _records_page(found: _Found, rows: list[Any], cursor: str | None) -> RecordsPage:
    documents = [_document(row) for row in rows]
    return RecordsPage(found.log, found.head, found.position, documents, cursor)


def _document(row: Any) -> bytes:
    collection, id, fields, is_deleted, last_modified, seq, created_seq = row[:7]
    return _encode(
        RecordView(
            collection,
            id,
            msgspec.Raw(fields),
            is_deleted,
            format_time(to_ms(last_modified)),
            seq,
            created_seq,
        )
    )


def _snapshot_document(row: Any) -> bytes:
    collection, id, fields, is_deleted, last_modified, seq, created_seq, *rest = row
    writes, deleted, erased_seq = rest
    return _encode(
        SnapshotRecord(
            collection,
            id,
            msgspec.Raw(fields),
            is_deleted,
            format_time(to_ms(last_modified)),
            seq,
            created_seq,
            msgspec.Raw(writes),
            None if deleted is None else msgspec.Raw(deleted),
            UNSET if erased_seq is None else erased_seq,
        )
    )
