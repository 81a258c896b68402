"""Implements the domain's interface `MasterTable` with PostgreSQL.

This module reads the current records and the local ids. All other reads, such as the history and
the snapshots, are inherited from classes in other modules of this package.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from foldlog.domain.changesets import LocalIds
from foldlog.domain.errors import InvalidRequest, UnknownRecord
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Key
from foldlog.domain.ports import (
    AtLeast,
    LocalIdsPage,
    MasterTable,
    RecordsPage,
    RecordsQuery,
    SpaceId,
    decode_cursor,
    encode_cursor,
)

from .conflicts import ConflictReader
from .diff import DiffReader
from .reading import (
    AFTER_ALL_NAMES,
    STORED_VIEW,
    VIEW,
    Found,
    Scope,
    bounded,
    complete_views,
    page_of,
    view_of_row,
)
from .snapshots import SnapshotReader

# `<> 0` is deliberate. With `> 0` the planner may choose the partial index by seq, whose order is
# different, and would read all of it for each page.
SELECT_LIVE = bounded(
    VIEW,
    ("fields",),
    f"""
        SELECT {STORED_VIEW}
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

# WITH TIES adds all records of the page's last seq, because a page must not split a seq.
SELECT_CHANGED = bounded(
    VIEW,
    ("fields",),
    f"""
        SELECT {STORED_VIEW}
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

# The rest of a seq that exceeds a page.
SELECT_OF_SEQ = bounded(
    VIEW,
    ("fields",),
    f"""
        SELECT {STORED_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND (%(collection)s::text IS NULL OR collection = %(collection)s)
           AND seq = %(split_seq)s
           AND (collection, id) > (%(after_collection)s, %(after_id)s)
         ORDER BY collection, id
         LIMIT %(limit)s
    """,
    order="collection, id",
)

SELECT_ONE = page_of(
    f"""
        SELECT 1 AS number_of_candidates, {STORED_VIEW}
          FROM records r
         WHERE r.space = p.space
           AND r.generation = p.generation
           AND created_seq > 0
           AND collection = %(collection)s
           AND id = %(id)s
    """,
    order="collection, id",
)

SELECT_LOCAL_IDS = page_of(
    """
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


class PostgresMasterTable(DiffReader, ConflictReader, SnapshotReader, MasterTable):
    def page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        if query.changed_after is None:
            return self._live_page(space, query)
        return self._changed_page(space, query, query.changed_after)

    def _live_page(self, space: SpaceId, query: RecordsQuery) -> RecordsPage:
        after = decode_cursor(query.cursor, str, str) if query.cursor else ("", "")
        params = {
            "first_collection": query.collection or "",
            "last_collection": query.collection or AFTER_ALL_NAMES,
            "after_collection": after[0],
            "after_id": after[1],
        }
        scope = Scope(space, query.at_least)
        found = self._page(SELECT_LIVE, scope, params, query.limit, complete=complete_views)
        rows, more = found.cut(query.limit)
        return _records_page(found, rows, encode_cursor(*rows[-1][:2]) if more else None)

    def _changed_page(self, space: SpaceId, query: RecordsQuery, after: int) -> RecordsPage:
        split, collection, id = 0, "", ""
        if query.cursor:
            after, split, collection, id = _changed_cursor(query.cursor)
        params = {
            "collection": query.collection,
            "changed_after": after,
            "split_seq": split,
            "after_collection": collection,
            "after_id": id,
        }
        scope = Scope(space, query.at_least)
        if split:
            return self._rest_of_seq(scope, params)
        found = self._page(SELECT_CHANGED, scope, params, query.limit, complete=complete_views)
        rows, more = found.rows, found.candidates > query.limit
        if len(rows) < found.candidates or len(rows) > query.limit:
            # The limit of bytes or of rows may have split the last seq, so it moves to the next
            # page.
            more = True
            rows = [row for row in rows if row[5] != rows[-1][5]]
        if not rows and found.rows:
            # One seq alone exceeds the limits of a page. Only the limit of bytes may split it.
            return self._rest_of_seq(scope, params | {"split_seq": found.rows[0][5]})
        return _records_page(found, rows, encode_cursor(rows[-1][5]) if more else None)

    def _rest_of_seq(self, scope: Scope, params: dict[str, Any]) -> RecordsPage:
        """Reads a page of the records that one event has changed last."""
        seq = params["split_seq"]
        found = self._page(SELECT_OF_SEQ, scope, params, INTEGER_MAX, complete=complete_views)
        rows, more = found.cut(INTEGER_MAX)
        cursor = encode_cursor(seq)
        if more:
            cursor = encode_cursor(params["changed_after"], seq, *rows[-1][:2])
        return _records_page(found, rows, cursor)

    def record(self, space: SpaceId, key: Key, *, at_least: AtLeast = 0) -> RecordsPage:
        params = {"collection": key[0], "id": key[1]}
        found = self._page(SELECT_ONE, Scope(space, at_least), params, 1, complete=complete_views)
        if not found.rows:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}")
        return _records_page(found, found.rows, None)

    def local_ids(
        self, space: SpaceId, device: str, *, limit: int, cursor: str | None, at_least: AtLeast = 0
    ) -> LocalIdsPage:
        after = decode_cursor(cursor, str, str) if cursor else ("", "")
        params = {"device": device, "after_collection": after[0], "after_local_id": after[1]}
        found = self._page(SELECT_LOCAL_IDS, Scope(space, at_least), params, limit)
        rows = found.rows[:limit]
        ids: LocalIds = {}
        for collection, local_id, id in rows:
            ids.setdefault(collection, {})[local_id] = id
        more = len(found.rows) > limit
        return LocalIdsPage(ids, encode_cursor(*rows[-1][:2]) if more else None)


def _changed_cursor(cursor: str) -> tuple[int, int, str, str]:
    """Returns the seq after which a page begins, and the place within the next seq. The place is
    `(0, "", "")` if the page begins with a new seq."""
    with suppress(InvalidRequest):
        (after,) = decode_cursor(cursor, int)
        return after, 0, "", ""
    after, split, collection, id = decode_cursor(cursor, int, int, str, str)
    return after, split, collection, id


def _records_page(found: Found, rows: list[Any], cursor: str | None) -> RecordsPage:
    documents = [msgspec.json.encode(view_of_row(row)) for row in rows]
    return RecordsPage(
        found.log, found.head, found.position, documents, cursor, halted_at=found.halted_at
    )
