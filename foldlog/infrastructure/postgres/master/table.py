"""The questions that the master table answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from psycopg.rows import tuple_row

from foldlog.domain.changesets import LocalIds
from foldlog.domain.errors import UnknownRecord
from foldlog.domain.ledger import ALL_CONFLICTS, ConflictsFilter, read_ledger, render_ledger
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Key
from foldlog.domain.ports import (
    ConflictsPage,
    LocalIdsPage,
    MasterTable,
    RecordsPage,
    RecordsQuery,
    Snapshot,
    SnapshotCursor,
    SnapshotPage,
    SpaceId,
    decode_cursor,
    encode_cursor,
)
from foldlog.domain.snapshot import SnapshotHeader, SnapshotRecord
from foldlog.domain.times import format_time, to_ms
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.log.marks import mark_at

from .history import PostgresHistory
from .reading import AFTER_ALL_NAMES, VIEW, Found, bounded, page_of, view_of_row

# `<> 0` is meant: with `> 0` the planner may take the index by seq, which has only those, but in
# another order, and would read all of it for every page.
SELECT_LIVE = bounded(
    VIEW,
    ("fields",),
    f"""
        SELECT {VIEW}
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
SELECT_CHANGED = bounded(
    VIEW,
    ("fields",),
    f"""
        SELECT {VIEW}
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

SELECT_ONE = page_of(
    page=f"""
        SELECT 1 AS number_of_candidates, {VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND collection = %(collection)s
           AND id = %(id)s
    """,
    order="collection, id",
)

SELECT_SNAPSHOT = bounded(
    f"{VIEW}, writes, deleted, erased_seq",
    ("fields", "writes"),
    f"""
        SELECT {VIEW}, writes, deleted,
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

_CONFLICTS = """
        SELECT seq, number, document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND (seq, number) > (%(after_seq)s, %(after_number)s)
           AND (seq, number) <= (%(through_seq)s, %(through_number)s){filter}
           AND (%(device)s::uuid IS NULL OR %(device)s::uuid IN (lost_by, won_by))
           AND (%(field)s::bytea IS NULL OR field = %(field)s::bytea)
         ORDER BY seq, number
         LIMIT %(limit)s
"""


def _select_conflicts(filter: str) -> str:
    return bounded(
        "seq, number, document",
        ("document",),
        _CONFLICTS.format(filter=filter),
        order="seq, number",
    )


# No index knows a device or a field: a page that asks for one looks no further than here.
_SCAN_END = """
SELECT c.seq, c.number
  FROM projections p
  JOIN conflicts c
    ON c.space = p.space AND c.generation = p.generation
 WHERE p.space = %(space)s
   AND p.projection = 'master'
   AND p.is_live
   AND c.space = %(space)s
   AND (c.seq, c.number) > (%(after_seq)s, %(after_number)s){filter}
 ORDER BY c.seq, c.number
OFFSET %(scan_max)s - 1
 LIMIT 1
"""

# Three statements and not one with optional filters: each has the plan that it is written for.
_FILTERS = {
    "all": "",
    "collection": """
           AND collection = %(collection)s""",
    "record": """
           AND collection = %(collection)s
           AND id = %(id)s""",
}
SELECT_CONFLICTS = {of: _select_conflicts(filter) for of, filter in _FILTERS.items()}
SELECT_SCAN_END = {of: _SCAN_END.format(filter=filter) for of, filter in _FILTERS.items()}

SELECT_LOCAL_IDS = page_of(
    page="""
        SELECT 1 AS number_of_candidates, collection, local_id, id
          FROM local_ids l
         WHERE l.space = p.space
           AND l.generation = p.generation
           AND l.device = %(device)s::uuid
           AND (collection, local_id) > (%(after_collection)s, %(after_local_id)s)
         ORDER BY collection, local_id
         LIMIT %(limit)s
    """,
    order="collection, local_id",
)

_encode = msgspec.json.encode


class PostgresMasterTable(PostgresHistory, MasterTable):
    """Reads the live generation."""

    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        if query.changed_after is None:
            return self._live_page(space, query)
        return self._changed_page(space, query, query.changed_after)

    def _live_page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        after = decode_cursor(query.cursor, str, str) if query.cursor else ("", "")
        names = {
            "first_collection": query.collection or "",
            "last_collection": query.collection or AFTER_ALL_NAMES,
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
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        return _records_page(found, found.rows, None)

    def snapshot(self, space: SpaceId, *, cursor: str | None = None, at_least: int = 0) -> Snapshot:
        place = SnapshotCursor.of(cursor)
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
            _, page = self._snapshot_page(space, SnapshotCursor.of(page.cursor), 0)
            yield page

    def _snapshot_page(
        self, space: SpaceId, place: SnapshotCursor, at_least: int
    ) -> tuple[Found, SnapshotPage]:
        limit = self._limits.page_snapshot_records
        names = {"after_collection": place.collection, "after_id": place.id}
        found = self._page(SELECT_SNAPSHOT, space, names, limit, at_least)
        place.check(found.log, found.head, self._mark(space, min(place.at, found.head)))
        if found.position < place.at:  # pages never go back in time
            found = self._page(SELECT_SNAPSHOT, space, names, limit, place.at)
        rows = found.rows[:limit]
        more = found.candidates > len(rows)
        mark = self._mark(space, found.position)
        last = SnapshotCursor(found.log, found.position, mark, *rows[-1][:2]) if more else None
        lines = [_snapshot_document(row) for row in rows]
        return found, SnapshotPage(lines, found.position, mark, last and last.cursor)

    def _mark(self, space: SpaceId, seq: int) -> str:
        with translated(self._datastore), self._datastore.get_connection() as conn:
            return mark_at(conn, space, seq)

    def conflicts(
        self,
        space: SpaceId,
        *,
        limit: int,
        cursor: str | None,
        at_least: int = 0,
        wanted: ConflictsFilter = ALL_CONFLICTS,
    ) -> ConflictsPage:
        after = decode_cursor(cursor, int, int) if cursor else (wanted.since, INTEGER_MAX)
        names = {
            "after_seq": after[0],
            "after_number": after[1],
            "collection": wanted.collection,
            "id": wanted.id,
            "field": None if wanted.field is None else wanted.field.encode(),
            "device": wanted.device,
        }
        of = "all" if wanted.collection is None else "collection" if wanted.id is None else "record"
        # What older code folded has conflicts, but not by field and hand.
        needs_history = is_scan = wanted.device is not None or wanted.field is not None
        end = self._scan_end(SELECT_SCAN_END[of], space, names) if is_scan else None
        names["through_seq"], names["through_number"] = end or (INTEGER_MAX, INTEGER_MAX)
        found = self._page(
            SELECT_CONFLICTS[of], space, names, limit, at_least, needs_history=needs_history
        )
        rows = found.rows[:limit]
        place = tuple(rows[-1][:2]) if found.candidates > len(rows) else end
        entries = read_ledger(row[2] for row in rows)
        heads = self._heads(space, {seq for entry in entries for seq in entry.seqs})
        return ConflictsPage(
            found.log,
            found.head,
            found.position,
            render_ledger(entries, heads, base=found.position),
            encode_cursor(*place) if place else None,
        )

    def _scan_end(
        self, statement: str, space: SpaceId, names: dict[str, Any]
    ) -> tuple[int, int] | None:
        """The last conflict that a page may look at; none if it comes to the end of the ledger."""
        names = {**names, "space": space, "scan_max": self._limits.page_scan_max}
        with translated(self._datastore), self._datastore.rows() as cursor:
            return cursor.execute(statement, names, prepare=True).fetchone()

    def local_ids(
        self, space: SpaceId, device: str, *, limit: int, cursor: str | None, at_least: int = 0
    ) -> LocalIdsPage:
        after = decode_cursor(cursor, str, str) if cursor else ("", "")
        names = {"device": device, "after_collection": after[0], "after_local_id": after[1]}
        found = self._page(SELECT_LOCAL_IDS, space, names, limit, at_least)
        rows = found.rows[:limit]
        ids: LocalIds = {}
        for collection, local_id, id in rows:
            ids.setdefault(collection, {})[local_id] = id
        more = len(found.rows) > limit
        return LocalIdsPage(ids, encode_cursor(*rows[-1][:2]) if more else None)


def _records_page(found: Found, rows: list[Any], cursor: str | None) -> RecordsPage:
    documents = [_encode(view_of_row(row)) for row in rows]
    return RecordsPage(found.log, found.head, found.position, documents, cursor)


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
