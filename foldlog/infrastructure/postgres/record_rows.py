"""Records as rows of the master table, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from ...domain.merge import Key, PackedWrites, Record, Write, pack_writes, unpack_writes
from ...domain.times import format_time, parse_time, to_ms
from .arrays import Array, bigint_array, bool_array, json_array, text_array, time_array, uuid_array

#: In this order in every statement that reads or writes whole records.
COLUMNS = (
    "collection, id, fields, is_deleted, seq, created_seq, last_modified, "
    "writes, deleted, touched_seq, touched_by, touched_seq_other"
)

UPSERT_RECORDS = f"""
INSERT INTO records (space, generation, {COLUMNS})
SELECT %(space)s, %(generation)s, {COLUMNS}
  FROM unnest(
           %(collection)s::text[], %(id)s::text[], %(fields)s::json[], %(is_deleted)s::boolean[],
           %(seq)s::bigint[], %(created_seq)s::bigint[], %(last_modified)s::timestamptz[],
           %(writes)s::json[], %(deleted)s::json[], %(touched_seq)s::bigint[],
           %(touched_by)s::uuid[], %(touched_seq_other)s::bigint[]
       ) AS new ({COLUMNS})
    ON CONFLICT (space, generation, collection, id) DO UPDATE
   SET fields = excluded.fields,
       is_deleted = excluded.is_deleted,
       seq = excluded.seq,
       created_seq = excluded.created_seq,
       last_modified = excluded.last_modified,
       writes = excluded.writes,
       deleted = excluded.deleted,
       touched_seq = excluded.touched_seq,
       touched_by = excluded.touched_by,
       touched_seq_other = excluded.touched_seq_other
RETURNING id
"""

STATEMENT_BYTES = 32 * 2**20
STATEMENT_RECORDS = 5_000

_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode
_decode_writes = msgspec.json.Decoder(PackedWrites).decode
_decode_write = msgspec.json.Decoder(Write).decode


def record_of(row: Sequence[Any]) -> Record:
    """The record of a row of `COLUMNS`."""
    (collection, id, fields, is_deleted, seq, created_seq, last_modified, *rest) = row
    (writes, deleted, touched_seq, touched_by, touched_seq_other) = rest
    return Record(
        collection=collection,
        id=id,
        fields=_decode_fields(fields),
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


@lru_cache(maxsize=4_096)  # records that came together were received at one time
def _ms_of(time: str) -> int | None:
    return parse_time(time) if time else None


def columns_of(records: Mapping[Key, Record]) -> Iterator[dict[str, Array]]:
    """The parameters of `UPSERT_RECORDS`, but for space and generation; in parts of some MB.

    In the order of keys, so that two writers of the same rows could never wait in a circle.
    """
    part: list[Record] = []
    fields: list[bytes] = []
    size = 0
    for key in sorted(records):
        record = records[key]
        part.append(record)
        fields.append(_encode(record.fields))
        size += len(fields[-1])
        if size > STATEMENT_BYTES or len(part) == STATEMENT_RECORDS:
            yield _columns(part, fields)
            part, fields, size = [], [], 0
    if part:
        yield _columns(part, fields)


def _columns(rows: list[Record], fields: list[bytes]) -> dict[str, Array]:
    return {
        "collection": text_array([r.collection for r in rows]),
        "id": text_array([r.id for r in rows]),
        "fields": json_array(fields),
        "is_deleted": bool_array([r.is_deleted for r in rows]),
        "seq": bigint_array([r.seq for r in rows]),
        "created_seq": bigint_array([r.created_seq for r in rows]),
        "last_modified": time_array([_ms_of(r.last_modified) for r in rows]),
        "writes": json_array([_encode(pack_writes(r.writes)) for r in rows]),
        "deleted": json_array([None if r.deleted is None else _encode(r.deleted) for r in rows]),
        "touched_seq": bigint_array([r.touched_seq for r in rows]),
        "touched_by": uuid_array([r.touched_by for r in rows]),
        "touched_seq_other": bigint_array([r.touched_seq_other for r in rows]),
    }
