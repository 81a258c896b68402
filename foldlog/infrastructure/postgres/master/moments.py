"""Reads records in the state that they had at an earlier seq or time."""

from __future__ import annotations

import msgspec

from foldlog.domain.errors import UnknownRecord
from foldlog.domain.history import Point, check_cursor_moment
from foldlog.domain.merge import Key
from foldlog.domain.ports import AsOfPage, AsOfQuery, SpaceId, decode_cursor, encode_cursor
from foldlog.infrastructure.postgres.log.heads import SELECT_HEAD

from .reading import (
    AFTER_ALL_NAMES,
    VIEW,
    LiveReader,
    Scope,
    bounded,
    complete_views,
    page_of,
    view_of_row,
)

# `received_at` never decreases, so bisection finds the last event up to a time. A log of a million
# events takes about twenty lookups by the key.
SELECT_SEQ_AT = """
WITH RECURSIVE halving (low, high) AS (
SELECT 0::bigint, head
  FROM spaces
 WHERE space = %(space)s
   AND NOT importing
 UNION ALL
SELECT CASE WHEN e.received_at_ms <= %(time)s THEN e.originator_version ELSE low END,
       CASE WHEN e.received_at_ms <= %(time)s THEN high ELSE e.originator_version - 1 END
  FROM halving
  JOIN events e
    ON e.originator_id = %(space)s AND e.originator_version = (low + high + 1) / 2
 WHERE low < high
)
SELECT low
  FROM halving
 WHERE low = high
 ORDER BY low
"""


def state_at(collection: str, id: str, seq: str) -> str:
    """Returns an SQL subquery that selects a record in the state that it had at an earlier seq.

    The arguments are SQL expressions for the record's collection, the record's id and the seq.
    Examples are `%(id)s` and `f.id`. Use the subquery in a statement in which `p` is the alias of
    the table `projections`.
    """
    return f"""
               SELECT v.seq AS version_seq, v.collection, v.id, v.own_fields AS fields,
                      v.is_deleted, v.last_modified, v.state_seq AS seq, v.created_seq, v.apart
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = {collection}
                  AND v.id = {id}
                  AND v.seq <= {seq}
                ORDER BY v.seq DESC
                LIMIT 1
    """


# The order is the order of creation, so the page never reads records that were created later.
SELECT_AS_OF = bounded(
    f"{VIEW}, first_seq",
    ("fields",),
    f"""
        SELECT state.*, f.seq AS first_seq
          FROM versions f
         CROSS JOIN LATERAL ({state_at("f.collection", "f.id", "%(as_of)s")}) state
         WHERE f.space = p.space
           AND f.generation = p.generation
           AND f.is_first
           AND f.collection BETWEEN %(first_collection)s AND %(last_collection)s
           AND f.seq <= %(as_of)s
           AND (f.collection, f.seq, f.id) > (%(after_collection)s, %(after_seq)s, %(after_id)s)
           AND NOT state.is_deleted
         ORDER BY f.collection, f.seq, f.id
         LIMIT %(limit)s
    """,
    order="collection, first_seq, id",
)

SELECT_ONE_AS_OF = page_of(
    f"""
        SELECT 1 AS number_of_candidates, {VIEW}
          FROM ({state_at("%(collection)s", "%(id)s", "%(as_of)s")}) state
    """,
    order="collection, id",
)

_encode = msgspec.json.encode


class MomentReader(LiveReader):
    def as_of(self, space: SpaceId, query: AsOfQuery) -> AsOfPage:
        collection, after_seq, id = "", 0, ""
        if query.cursor:
            of_cursor, collection, after_seq, id = decode_cursor(query.cursor, int, str, int, str)
            as_of = check_cursor_moment(query.moment, of_cursor)
        else:
            as_of = self._seq_of(space, query.moment)
        params = {
            "as_of": as_of,
            "first_collection": query.collection or "",
            "last_collection": query.collection or AFTER_ALL_NAMES,
            "after_collection": collection,
            "after_seq": after_seq,
            "after_id": id,
        }
        scope = Scope(space, max(as_of, query.at_least), needs_history=True)
        found = self._page(SELECT_AS_OF, scope, params, query.limit, complete=complete_views)
        rows, more = found.cut(query.limit)
        last = rows[-1] if more else None
        return AsOfPage(
            found.log,
            found.head,
            found.position,
            [_encode(view_of_row(row)) for row in rows],
            last and encode_cursor(as_of, last[0], last[8], last[1]),
            as_of,
            halted_at=found.halted_at,
        )

    def record_as_of(
        self, space: SpaceId, key: Key, moment: Point, *, at_least: int = 0
    ) -> AsOfPage:
        as_of = self._seq_of(space, moment)
        params = {"collection": key[0], "id": key[1], "as_of": as_of}
        scope = Scope(space, max(as_of, at_least), needs_history=True)
        found = self._page(SELECT_ONE_AS_OF, scope, params, 1, complete=complete_views)
        if not found.rows:
            raise UnknownRecord(f"there was no record {key[0]}/{key[1]} at {as_of}, nor before")
        documents = [_encode(view_of_row(row)) for row in found.rows]
        return AsOfPage(
            *(found.log, found.head, found.position, documents, None, as_of),
            halted_at=found.halted_at,
        )

    def _seq_of(self, space: SpaceId, moment: Point) -> int:
        if moment.seq is not None:
            return moment.seq
        statement = SELECT_HEAD if moment.time is None else SELECT_SEQ_AT
        found = self._datastore.fetch_one(statement, {"space": space, "time": moment.time})
        if found is None:
            raise self._absent(space)
        return int(found[0])
