"""What was, from the versions of records: any moment, every hand, what differs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from foldlog.domain.errors import UnknownRecord, UnknownSpace
from foldlog.domain.events import decode_event
from foldlog.domain.history import (
    HEAD_BYTES_MAX,
    DiffCursor,
    Difference,
    EventHead,
    Fields,
    Order,
    Point,
    check_cursor_moment,
    check_moments,
    difference,
    head_of,
    version_view,
)
from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.merge import Key
from foldlog.domain.ports import (
    AsOfPage,
    AsOfQuery,
    DiffPage,
    DiffQuery,
    History,
    HistoryPage,
    HistoryQuery,
    SpaceId,
    decode_cursor,
    encode_cursor,
)
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, text_array
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, select_page

from .reading import AFTER_ALL_NAMES, VIEW, Found, LiveReader, bounded, page_of, view_of_row

# `received_at` never goes back, so halving finds the last event up to a time: some twenty look-ups
# by the key, however long the log is.
SELECT_SEQ_AT = """
WITH RECURSIVE halving (low, high) AS (
SELECT 0::bigint, head
  FROM spaces
 WHERE space = %(space)s
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

SELECT_HEAD = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
"""

SELECT_HEADS = f"""
SELECT substr(state, 1, {HEAD_BYTES_MAX})
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version = ANY(%(seqs)s::bigint[])
 ORDER BY originator_version
"""


def _state(collection: str, id: str, upto: str) -> str:
    """A record as it would have been read at a seq."""
    return f"""
               SELECT v.seq AS version_seq, v.collection, v.id, v.fields, v.is_deleted,
                      v.last_modified, v.state_seq AS seq, v.created_seq
                 FROM versions v
                WHERE v.space = p.space
                  AND v.generation = p.generation
                  AND v.collection = {collection}
                  AND v.id = {id}
                  AND v.seq <= {upto}
                ORDER BY v.seq DESC
                LIMIT 1
    """


# By what came to be up to then, one after another: whatever was made later is not even looked at.
SELECT_AS_OF = bounded(
    f"{VIEW}, first_seq",
    ("fields",),
    f"""
        SELECT state.*, f.seq AS first_seq
          FROM versions f
         CROSS JOIN LATERAL ({_state("f.collection", "f.id", "%(as_of)s")}) state
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
          FROM ({_state("%(collection)s", "%(id)s", "%(as_of)s")}) state
    """,
    order="collection, id",
)


def _history(comes_after: str, order: str) -> str:
    return bounded(
        "version, header, is_deleted, fields_before, fields",
        ("fields_before", "fields"),
        f"""
        SELECT here.seq AS version,
               substr(e.state, 1, {HEAD_BYTES_MAX}) AS header,
               here.is_deleted,
               coalesce(before.fields, '{{}}'::json) AS fields_before,
               here.fields
          FROM versions here
          JOIN events e
            ON e.originator_id = here.space AND e.originator_version = here.seq
          LEFT JOIN LATERAL ({_state("here.collection", "here.id", "here.seq - 1")}) before ON true
         WHERE here.space = p.space
           AND here.generation = p.generation
           AND here.collection = %(collection)s
           AND here.id = %(id)s
           AND here.seq {comes_after} %(after)s
         ORDER BY here.seq {order}
         LIMIT %(limit)s
        """,
        order=f"version {order}",
    )


def _lost(order: str) -> str:
    return bounded(
        "seq, number, document",
        ("document",),
        f"""
        SELECT seq, number, document
          FROM conflicts c
         WHERE c.space = p.space
           AND c.generation = p.generation
           AND collection = %(collection)s
           AND id = %(id)s
           AND seq BETWEEN %(first)s AND %(last)s
         ORDER BY seq {order}, number {order}
         LIMIT %(limit)s
        """,
        order=f"seq {order}, number {order}",
    )


#: of each order: the versions, what lost at them, and where the first page begins
HISTORY: dict[Order, tuple[str, str, int]] = {
    "oldest": (_history(">", "ASC"), _lost("ASC"), 0),
    "newest": (_history("<", "DESC"), _lost("DESC"), INTEGER_MAX),
}

# The events that touch a collection, or all of them, of a stretch of the log.
SELECT_TOUCHING = select_page(f"originator_version, {STATE_TO_FOLD}")

SELECT_TOUCHING_ONE = select_page(
    f"originator_version, {STATE_TO_FOLD}",
    filter="""
   AND collections @> ARRAY[%(collection)s::text]""",
)

# Of records with the event that touched each one last: those whose state moved since `start`. One
# that was touched again after that event, but not after `to`, has its turn there.
SELECT_DIFFERENT = bounded(
    f"""place_seq, {VIEW}, fields_before, is_deleted_before, last_modified_before, seq_before,
        created_seq_before""",
    ("fields", "fields_before"),
    f"""
        SELECT state.*,
               state.version_seq AS place_seq,
               coalesce(before.fields, '{{}}'::json) AS fields_before,
               coalesce(before.is_deleted, true) AS is_deleted_before,
               before.last_modified AS last_modified_before,
               before.seq AS seq_before,
               before.created_seq AS created_seq_before
          FROM unnest(
                   %(seqs)s::bigint[], %(collections)s::text[], %(ids)s::text[]
               ) AS touched (seq, collection, id)
         CROSS JOIN LATERAL ({_state("touched.collection", "touched.id", "%(to)s")}) state
          LEFT JOIN LATERAL (
               {_state("touched.collection", "touched.id", "%(start)s")}
               ) before ON true
         WHERE state.version_seq = touched.seq
           AND state.seq > %(start)s
           AND NOT (state.is_deleted AND coalesce(before.is_deleted, true))
           AND (touched.seq, touched.collection, touched.id)
               > (%(after_seq)s, %(after_collection)s, %(after_id)s)
         ORDER BY touched.seq, touched.collection, touched.id
         LIMIT %(limit)s
    """,
    order="place_seq, collection, id",
)

#: of a diff, looked at in one go
BATCH_EVENTS = 1_000

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(Fields).decode


class PostgresHistory(LiveReader, History):
    def as_of(self, space: SpaceId, query: AsOfQuery) -> AsOfPage:
        collection, after_seq, id = "", 0, ""
        if query.cursor:
            begun, collection, after_seq, id = decode_cursor(query.cursor, int, str, int, str)
            as_of = check_cursor_moment(query.moment, begun)
        else:
            as_of = self._seq_of(space, query.moment)
        names = {
            "as_of": as_of,
            "first_collection": query.collection or "",
            "last_collection": query.collection or AFTER_ALL_NAMES,
            "after_collection": collection,
            "after_seq": after_seq,
            "after_id": id,
        }
        at_least = max(as_of, query.at_least)
        found = self._page(SELECT_AS_OF, space, names, query.limit, at_least, needs_history=True)
        rows = found.rows[: query.limit]
        last = rows[-1] if found.candidates > len(rows) else None
        return AsOfPage(
            found.log,
            found.head,
            found.position,
            [_encode(view_of_row(row)) for row in rows],
            last and encode_cursor(as_of, last[0], last[7], last[1]),
            as_of,
        )

    def record_as_of(
        self, space: SpaceId, key: Key, moment: Point, *, at_least: int = 0
    ) -> AsOfPage:
        as_of = self._seq_of(space, moment)
        names = {"collection": key[0], "id": key[1], "as_of": as_of}
        at_least = max(as_of, at_least)
        found = self._select(SELECT_ONE_AS_OF, space, names, at_least, needs_history=True)
        if not found.rows:
            raise UnknownRecord(f"there was no record {key[0]}/{key[1]} at {as_of}, nor before")
        documents = [_encode(view_of_row(row)) for row in found.rows]
        return AsOfPage(found.log, found.head, found.position, documents, None, as_of)

    def history(self, space: SpaceId, key: Key, query: HistoryQuery) -> HistoryPage:
        select_versions, select_lost, after = HISTORY[query.order]
        if query.cursor:
            (after,) = decode_cursor(query.cursor, int)
        names = {"collection": key[0], "id": key[1], "after": after}
        found = self._page(
            select_versions, space, names, query.limit, query.at_least, needs_history=True
        )
        if not found.rows and not query.cursor:
            raise UnknownRecord(f"there is no record {key[0]}/{key[1]}, and never was")
        rows, lost = self._with_lost(select_lost, space, names, found.rows[: query.limit])
        versions = [
            version_view(
                head_of(header),
                is_deleted,
                _decode_fields(before),
                _decode_fields(fields),
                lost.get(seq, ()),
            )
            for seq, header, is_deleted, before, fields in rows
        ]
        return HistoryPage(
            found.log,
            found.head,
            found.position,
            list(map(_encode, versions)),
            encode_cursor(rows[-1][0]) if found.candidates > len(rows) else None,
        )

    def _with_lost(
        self, select_lost: str, space: SpaceId, names: dict[str, Any], rows: list[Any]
    ) -> tuple[list[Any], dict[int, list[bytes]]]:
        """As many of these versions as there is room for with all that lost at them; and that."""
        if not rows:
            return rows, {}
        seqs = [row[0] for row in rows]
        names = {**names, "first": min(seqs), "last": max(seqs)}
        found = self._page(select_lost, space, names, INTEGER_MAX, 0)
        if len(found.rows) < found.candidates:
            # Of the last one there may be more. If it is the only one, it comes whole all the same.
            cut = seqs.index(found.rows[-1][0])
            rows = rows[: max(cut, 1)]
            if cut == 0:
                names |= {"first": seqs[0], "last": seqs[0]}
                found = self._page(select_lost, space, names, INTEGER_MAX, 0, is_bounded=False)
        lost: dict[int, list[bytes]] = {}
        for seq, _, document in sorted(found.rows):
            lost.setdefault(seq, []).append(document)
        return rows, lost

    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        place = self._diff_place(space, query)
        through = min(place.seq - 1 + self._limits.page_scan_max, place.to)
        differences: list[bytes] = []
        size = 0
        while True:
            limit = query.limit - len(differences)
            touched, done = self._touched(space, query.collection, place.seq - 1, through)
            found = self._different(space, place, touched, limit, query.at_least)
            rows = found.rows[:limit]
            differences += [_encode(d) for d in map(_difference_of, rows) if d is not None]
            size += sum(len(row[3]) + len(row[8]) for row in rows)
            is_cut = found.candidates > len(rows)
            if is_cut:
                place = place._replace(seq=rows[-1][0], collection=rows[-1][1], id=rows[-1][2])
            else:
                place = place._replace(seq=done + 1, collection="", id="")
            is_full = len(differences) == query.limit or size >= self._limits.page_bytes_max
            if is_cut or is_full or done >= through:
                break
        return DiffPage(
            found.log,
            found.head,
            found.position,
            place.start,
            place.to,
            differences,
            encode_cursor(*place) if place.seq <= place.to else None,
        )

    def _diff_place(self, space: SpaceId, query: DiffQuery) -> DiffCursor:
        if query.cursor:
            place = DiffCursor(*decode_cursor(query.cursor, int, int, int, str, str))
            check_cursor_moment(query.start, place.start)
            check_cursor_moment(query.to, place.to)
        else:
            start = self._seq_of(space, query.start)
            place = DiffCursor(start, self._seq_of(space, query.to), start + 1)
        check_moments(place.start, place.to)
        return place

    def _touched(
        self, space: SpaceId, collection: str | None, after: int, through: int
    ) -> tuple[dict[Key, int], int]:
        """Records that the next events touch, each with the last one; and how far they reach."""
        names = {
            "space": space,
            "after": after,
            "through": through,
            "collection": collection,
            "limit": BATCH_EVENTS,
            "bytes_max": self._limits.page_bytes_max,
        }
        statement = SELECT_TOUCHING if collection is None else SELECT_TOUCHING_ONE
        with translated(self._datastore), self._datastore.rows() as cursor:
            rows = cursor.execute(statement, names, prepare=True, binary=True).fetchall()
        touched = {
            key: seq
            for seq, state in rows
            for key in decode_event(state).keys
            if collection in (None, key[0])
        }
        size = sum(len(state) for _, state in rows)
        is_all = len(rows) < BATCH_EVENTS and size <= self._limits.page_bytes_max
        return touched, through if is_all else rows[-1][0]

    def _different(
        self,
        space: SpaceId,
        place: DiffCursor,
        touched: dict[Key, int],
        limit: int,
        at_least: int,
    ) -> Found:
        names = {
            "start": place.start,
            "to": place.to,
            "after_seq": place.seq,
            "after_collection": place.collection,
            "after_id": place.id,
            "seqs": bigint_array(touched.values()),
            "collections": text_array(collection for collection, _ in touched),
            "ids": text_array(id for _, id in touched),
        }
        at_least = max(place.to, at_least)
        return self._page(SELECT_DIFFERENT, space, names, limit, at_least, needs_history=True)

    def _seq_of(self, space: SpaceId, moment: Point) -> int:
        if moment.seq is not None:
            return moment.seq
        statement = SELECT_HEAD if moment.time is None else SELECT_SEQ_AT
        names = {"space": space, "time": moment.time}
        with translated(self._datastore), self._datastore.rows() as cursor:
            found = cursor.execute(statement, names, prepare=True).fetchone()
        if found is None:
            raise UnknownSpace(space)
        return int(found[0])

    def _heads(self, space: SpaceId, seqs: Collection[int]) -> dict[int, EventHead]:
        """What these events say of themselves."""
        if not seqs:
            return {}
        names = {"space": space, "seqs": bigint_array(seqs)}
        with translated(self._datastore), self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_HEADS, names, prepare=True).fetchall()
        return {head.seq: head for head in (head_of(beginning) for (beginning,) in rows)}


def _difference_of(row: Any) -> Difference | None:
    """Of a row of `SELECT_DIFFERENT`."""
    _, collection, id, *_ = row
    fields, is_deleted, last_modified, seq, created_seq = row[8:]
    before = None
    if not is_deleted:
        before = view_of_row((collection, id, fields, is_deleted, last_modified, seq, created_seq))
    return difference(before, view_of_row(row[1:]))
