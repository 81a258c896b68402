"""Compares the records of a space at two moments, and returns the differences in pages."""

from __future__ import annotations

from typing import Any

import msgspec

from foldlog.domain.events import decode_event
from foldlog.domain.history import (
    DiffCursor,
    Difference,
    check_cursor_moment,
    check_moments,
    difference,
)
from foldlog.domain.merge import Key
from foldlog.domain.ports import DiffPage, DiffQuery, SpaceId, decode_cursor, encode_cursor
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, text_array
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, page_params, select_page

from .assembly import Columns, states_completer
from .moments import MomentReader, state_at
from .reading import VIEW, Found, Scope, bounded, view_of_row

# Reads a part of the log: all events, or only those that touch one collection.
SELECT_TOUCHING = select_page(f"originator_version, {STATE_TO_FOLD}")

SELECT_TOUCHING_ONE = select_page(
    f"originator_version, {STATE_TO_FOLD}",
    filter="""
   AND collections @> ARRAY[%(collection)s::text]""",
)

# The parameters name records, each with the last event of this batch that touched it. The rows are
# the records whose state moved after `start`. A record that another event touched later, up to
# `to`, belongs to the batch of that event.
SELECT_DIFFERENT = bounded(
    f"""place_seq, {VIEW}, fields_before, is_deleted_before, last_modified_before, seq_before,
        created_seq_before, apart_before""",
    ("fields", "fields_before"),
    f"""
        SELECT state.*,
               state.version_seq AS place_seq,
               coalesce(before.fields, '{{}}'::json) AS fields_before,
               coalesce(before.is_deleted, true) AS is_deleted_before,
               before.last_modified AS last_modified_before,
               before.seq AS seq_before,
               before.created_seq AS created_seq_before,
               before.apart AS apart_before
          FROM unnest(
                   %(seqs)s::bigint[], %(collections)s::text[], %(ids)s::text[]
               ) AS touched (seq, collection, id)
         CROSS JOIN LATERAL ({state_at("touched.collection", "touched.id", "%(to)s")}) state
          LEFT JOIN LATERAL (
               {state_at("touched.collection", "touched.id", "%(start)s")}
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

#: completes the states after and before in the rows of `SELECT_DIFFERENT`
_complete = states_completer(
    Columns(fields=3, apart=8), Columns(fields=9, apart=14), key_of=lambda row: (row[1], row[2])
)
#: events that one statement of a diff covers
BATCH_EVENTS = 1_000

_encode = msgspec.json.encode


class DiffReader(MomentReader):
    def diff(self, space: SpaceId, query: DiffQuery) -> DiffPage:
        cursor = self._cursor(space, query)
        through = min(cursor.seq - 1 + self._limits.page_scan_max, cursor.to)
        scope = Scope(space, max(cursor.to, query.at_least), needs_history=True)
        differences: list[bytes] = []
        size = 0
        while True:
            limit = query.limit - len(differences)
            touched, done = self._touched(space, query.collection, cursor.seq - 1, through)
            found = self._different(scope, cursor, touched, limit)
            rows, is_cut = found.cut(limit)
            differences += [_encode(d) for d in map(_difference_of, rows) if d is not None]
            size += sum(len(row[3]) + len(row[9]) for row in rows)
            if is_cut:
                seq, collection, id = rows[-1][:3]
                cursor = cursor._replace(seq=seq, collection=collection, id=id)
            else:
                cursor = cursor._replace(seq=done + 1, collection="", id="")
            is_full = len(differences) == query.limit or size >= self._limits.page_bytes_max
            if is_cut or is_full or done >= through:
                break
        return DiffPage(
            found.log,
            found.head,
            found.position,
            cursor.start,
            cursor.to,
            differences,
            encode_cursor(*cursor) if cursor.seq <= cursor.to else None,
            halted_at=found.halted_at,
        )

    def _cursor(self, space: SpaceId, query: DiffQuery) -> DiffCursor:
        if query.cursor:
            cursor = DiffCursor(*decode_cursor(query.cursor, int, int, int, str, str))
            check_cursor_moment(query.start, cursor.start)
            check_cursor_moment(query.to, cursor.to)
        else:
            start = self._seq_of(space, query.start)
            cursor = DiffCursor(start, self._seq_of(space, query.to), start + 1)
        check_moments(cursor.start, cursor.to)
        return cursor

    def _touched(
        self, space: SpaceId, collection: str | None, after: int, through: int
    ) -> tuple[dict[Key, int], int]:
        """Reads a batch of events with `after < seq <= through`, and finds the records they touch.

        The first returned value is {record key: seq of the last event of the batch that touches the
        record}. The second value is the seq at which the batch ends: `through`, or less if the
        batch has reached its limit of events or bytes.
        """
        bytes_max = self._limits.page_bytes_max
        params = page_params(space, after, through, limit=BATCH_EVENTS, bytes_max=bytes_max)
        statement = SELECT_TOUCHING if collection is None else SELECT_TOUCHING_ONE
        rows = self._datastore.fetch_all(
            statement, {**params, "collection": collection}, binary=True
        )
        touched = {
            key: seq
            for seq, state in rows
            for key in decode_event(state).keys
            if collection in (None, key[0])
        }
        size = sum(len(state) for _, state in rows)
        is_all = len(rows) < BATCH_EVENTS and size <= bytes_max
        return touched, through if is_all else rows[-1][0]

    def _different(
        self, scope: Scope, cursor: DiffCursor, touched: dict[Key, int], limit: int
    ) -> Found:
        params = {
            "start": cursor.start,
            "to": cursor.to,
            "after_seq": cursor.seq,
            "after_collection": cursor.collection,
            "after_id": cursor.id,
            "seqs": bigint_array(touched.values()),
            "collections": text_array(collection for collection, _ in touched),
            "ids": text_array(id for _, id in touched),
        }
        return self._page(SELECT_DIFFERENT, scope, params, limit, complete=_complete)


def _difference_of(row: Any) -> Difference | None:
    """Returns the difference between two states of a record, or `None` if the states are equal.

    `row` is a row of the statement `SELECT_DIFFERENT`, which contains both states.
    """
    _, collection, id, *_ = row
    fields, is_deleted, last_modified, seq, created_seq, _ = row[9:]
    before = None
    if not is_deleted:
        before = view_of_row((collection, id, fields, is_deleted, last_modified, seq, created_seq))
    return difference(before, view_of_row(row[1:]))
