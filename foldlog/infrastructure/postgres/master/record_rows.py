"""Converts records to rows of the tables `records` and `versions`, and database rows to records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from foldlog.domain.json_reader import decoder
from foldlog.domain.merge import Key, PackedWrites, Write, pack_writes, unpack_writes
from foldlog.domain.times import format_time, parse_time, to_ms
from foldlog.infrastructure.postgres.connection.arrays import (
    Array,
    bigint_array,
    bool_array,
    json_array,
    text_array,
    time_array,
    uuid_array,
)

from .stored_form import FromLog, StoredRecord, Version, add_fields, apart_of

#: the order of columns in all statements that read or write whole records
COLUMNS = (
    "collection, id, fields, is_deleted, seq, created_seq, last_modified, "
    "writes, deleted, touched_seq, touched_by, touched_seq_other, apart"
)
#: the index of `fields` in `COLUMNS`
_FIELDS = 2

# A small request can name many large records. After `bytes_max` bytes the further records come
# without their large columns.
_SELECT_WANTED = """
SELECT collection,
       id,
       CASE WHEN bytes <= %(bytes_max)s THEN own_fields END AS fields,
       is_deleted,
       seq,
       created_seq,
       last_modified,
       CASE WHEN bytes <= %(bytes_max)s THEN writes END AS writes,
       deleted,
       touched_seq,
       touched_by,
       touched_seq_other,
       apart
  FROM (
       SELECT r.*,
              sum(octet_length(own_fields::text) + octet_length(writes::text)) OVER (
                  ORDER BY collection, id ROWS UNBOUNDED PRECEDING
              ) AS bytes
         FROM records r
         JOIN unnest(%(collections)s::text[], %(ids)s::text[]) AS wanted (collection, id)
        USING (collection, id)
        WHERE r.space = {space}
          AND r.generation = {generation}
       ) measured
 ORDER BY collection, id
"""

# The parameters have one row for each record and each event that touched it. Each row becomes a
# version, and the last row of a record replaces the record. A record that was touched but never
# created (`created_seq` 0) has no versions. A record that is stored in parts (`live_apart`) has
# these in its versions only.
WRITE_STATES = """
WITH states AS MATERIALIZED (
SELECT *
  FROM unnest(
           %(collection)s::text[], %(id)s::text[], %(fields)s::json[], %(is_deleted)s::boolean[],
           %(seq)s::bigint[], %(created_seq)s::bigint[], %(last_modified)s::timestamptz[],
           %(writes)s::json[], %(deleted)s::json[], %(touched_seq)s::bigint[],
           %(touched_by)s::uuid[], %(touched_seq_other)s::bigint[],
           %(apart)s::json[], %(part_writes)s::json[], %(live_apart)s::json[],
           %(is_first)s::boolean[], %(is_last)s::boolean[]
       ) AS state (
           collection, id, fields, is_deleted, seq, created_seq, last_modified,
           writes, deleted, touched_seq, touched_by, touched_seq_other,
           apart, part_writes, live_apart, is_first, is_last
       )
),
kept AS (
INSERT INTO versions (
           space, generation, collection, id, seq,
           own_fields, is_deleted, state_seq, created_seq, last_modified, is_first,
           apart, own_writes
       )
SELECT %(space)s, %(generation)s, collection, id, touched_seq,
       fields, is_deleted, seq, created_seq, last_modified, is_first, apart, part_writes
  FROM states
 WHERE created_seq > 0
RETURNING id
)
INSERT INTO records (
           space, generation, collection, id, own_fields, is_deleted, seq, created_seq,
           last_modified, writes, deleted, touched_seq, touched_by, touched_seq_other, apart
       )
SELECT %(space)s, %(generation)s, collection, id,
       CASE WHEN live_apart IS NULL THEN fields ELSE '{}' END,
       is_deleted, seq, created_seq, last_modified,
       writes, deleted, touched_seq, touched_by, touched_seq_other,
       coalesce(live_apart, apart)
  FROM states
 WHERE is_last
    ON CONFLICT (space, generation, collection, id) DO UPDATE
   SET own_fields = excluded.own_fields,
       is_deleted = excluded.is_deleted,
       seq = excluded.seq,
       created_seq = excluded.created_seq,
       last_modified = excluded.last_modified,
       writes = excluded.writes,
       deleted = excluded.deleted,
       touched_seq = excluded.touched_seq,
       touched_by = excluded.touched_by,
       touched_seq_other = excluded.touched_seq_other,
       apart = excluded.apart
RETURNING id
"""

#: the size of one statement; its last state may exceed it
STATEMENT_BYTES = 16 * 2**20
STATEMENT_RECORDS = 5_000
_encode = msgspec.json.encode
_decode_fields = decoder(dict[str, Any]).decode
_decode_writes = msgspec.json.Decoder(PackedWrites).decode
_decode_write = msgspec.json.Decoder(Write).decode


def select_wanted(space: str, generation: str) -> str:
    """Returns an SQL statement that reads the records with given keys.

    `space` and `generation` are SQL expressions. The statement has the parameters `collections` and
    `ids`, two arrays of the same length that contain the keys. It returns the columns `COLUMNS`,
    ordered by collection and id.

    The statement adds up the sizes of the large columns, row by row. When the sum exceeds the
    parameter `bytes_max`, the large columns of this row and of all later rows are NULL.
    """
    return _SELECT_WANTED.format(space=space, generation=generation)


def lacks_values(row: Sequence[Any]) -> bool:
    """Tells whether a row was read without the values of its large columns.

    `row` is a row of a `select_wanted` statement. The statement returns NULL for the large columns
    after it has read `bytes_max` bytes.
    """
    return row[_FIELDS] is None


def record_of(row: Sequence[Any], from_log: FromLog) -> tuple[StoredRecord, list[tuple[int, int]]]:
    """Converts a database row with the columns `COLUMNS` to a record.

    `from_log` makes the values that are in the log. Returns the record, and the (seq, bytes) of the
    versions that `unpack` needs to complete it. A record that is stored whole needs none.
    """
    (collection, id, fields, is_deleted, seq, created_seq, last_modified, *rest) = row
    (writes, deleted, touched_seq, touched_by, touched_seq_other, apart) = rest
    left_out = apart_of(apart)
    record = StoredRecord(
        collection=collection,
        id=id,
        writes=unpack_writes(_decode_writes(writes)),
        deleted=None if deleted is None else _decode_write(deleted),
        is_deleted=is_deleted,
        seq=seq,
        last_modified="" if last_modified is None else format_time(to_ms(last_modified)),
        created_seq=created_seq,
        touched_seq=touched_seq,
        touched_by=None if touched_by is None else str(touched_by),
        touched_seq_other=touched_seq_other,
    )
    add_fields(record.fields, _decode_fields(fields), left_out, from_log)
    return record, left_out.parts


@lru_cache(maxsize=4_096)  # the records of a changeset have one time
def _ms_of(time: str) -> int | None:
    return parse_time(time) if time else None


class StateRows:
    """Collects the states of records after each event, as parameters of SQL statements.

    Call `add` for each record that an event touches. When `add` returns `True`, call `take`, and
    run the statement `WRITE_STATES` with the result. After the last event, call `take` and run the
    statement again if `len` shows that states are left.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._by_key: dict[Key, list[Version]] = {}
        self._count = self._size = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: Key, version: Version) -> bool:
        """Adds the state that a record has after an event.

        Returns `True` if enough states are collected for one statement. The caller should then call
        `take` and run the statement.
        """
        self._by_key.setdefault(key, []).append(version)
        self._count += 1
        self._size += version.size
        return self._size >= STATEMENT_BYTES or self._count == STATEMENT_RECORDS

    def take(self) -> dict[str, Array]:
        """Removes all collected states, and returns them as parameters of `WRITE_STATES`.

        The caller must add the parameters `space` and `generation`. The rows are sorted by the key
        of the record. So two transactions lock rows in the same order, which prevents deadlocks.
        """
        rows: list[Version] = []
        is_last: list[bool] = []
        for key in sorted(self._by_key):
            states = self._by_key[key]
            rows += states
            is_last += [False] * (len(states) - 1) + [True]
        self._clear()
        return _columns(rows, is_last)


def _columns(versions: list[Version], is_last: list[bool]) -> dict[str, Array]:
    rows = [version.record for version in versions]
    # Only the last state of a record keeps the data that the merge needs.
    kept = [row if last else None for row, last in zip(rows, is_last, strict=True)]
    return {
        "collection": text_array([r.collection for r in rows]),
        "id": text_array([r.id for r in rows]),
        "fields": json_array(version.fields for version in versions),
        "is_deleted": bool_array([r.is_deleted for r in rows]),
        "seq": bigint_array([r.seq for r in rows]),
        "created_seq": bigint_array([r.created_seq for r in rows]),
        "last_modified": time_array([_ms_of(r.last_modified) for r in rows]),
        "writes": json_array([None if r is None else _live_writes(r) for r in kept]),
        "deleted": json_array([_encode(r.deleted) if r and r.deleted else None for r in kept]),
        "touched_seq": bigint_array([r.touched_seq for r in rows]),
        "touched_by": uuid_array([r.touched_by for r in rows]),
        "touched_seq_other": bigint_array([r.touched_seq_other for r in rows]),
        "apart": json_array(version.apart for version in versions),
        "part_writes": json_array(version.writes for version in versions),
        "live_apart": json_array(version.live_apart for version in versions),
        "is_first": bool_array(version.is_first for version in versions),
        "is_last": bool_array(is_last),
    }


def _live_writes(record: StoredRecord) -> bytes:
    return b"[]" if record.parts else _encode(pack_writes(record.writes))
