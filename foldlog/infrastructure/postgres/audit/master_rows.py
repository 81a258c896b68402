"""Reads the rows of the master table for an audit, and makes the same rows from folded records.

A large value is compared by its SHA-256, so that each row stays small in both places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from foldlog.domain.derived import Row, RowKey
from foldlog.domain.merge import Conflict, Key, Record
from foldlog.domain.times import parse_time
from foldlog.infrastructure.postgres.connection.arrays import bigint_array, text_array
from foldlog.infrastructure.postgres.master.conflict_rows import stored_document
from foldlog.infrastructure.postgres.master.stored_form import (
    StoredRecord,
    Version,
    live_columns,
)

from .snapshot import Snapshot

#: Longer values are compared by their hashes.
VALUE_BYTES_MAX = 1_000


def _brief(column: str) -> str:
    return f"""CASE WHEN octet_length({column}::text) <= {VALUE_BYTES_MAX}
            THEN {column}::text
            ELSE 'sha256:' || encode(sha256(convert_to({column}::text, 'UTF8')), 'hex')
       END AS {column}"""


def _ms(column: str) -> str:
    return f"(extract(epoch FROM {column}) * 1000)::float8 AS {column}"


SELECT_RECORDS = f"""
SELECT collection,
       id,
       {_brief("own_fields")},
       is_deleted,
       seq,
       created_seq,
       {_ms("last_modified")},
       {_brief("writes")},
       deleted::text,
       touched_seq,
       touched_by::text,
       touched_seq_other,
       {_brief("apart")}
  FROM records
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY collection, id
"""

SELECT_VERSIONS = f"""
SELECT collection,
       id,
       seq,
       {_brief("own_fields")},
       is_deleted,
       state_seq,
       created_seq,
       {_ms("last_modified")},
       is_first,
       {_brief("apart")},
       {_brief("own_writes")}
  FROM versions
  JOIN unnest(%(collections)s::text[], %(ids)s::text[], %(seqs)s::bigint[])
       AS wanted (collection, id, seq)
 USING (collection, id, seq)
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY collection, id, seq
"""

# A record that is erased later loses its rows before the projection reaches that event.
COUNT_VERSIONS = """
SELECT count(*)
  FROM versions v
 WHERE v.space = %(space)s
   AND v.generation = %(generation)s
   AND NOT EXISTS (
           SELECT
             FROM erasures x
            WHERE x.space = %(space)s
              AND x.collection = v.collection
              AND x.id = v.id
              AND x.seq > %(position)s
       )
"""

SELECT_VERSION_KEYS = """
SELECT collection, id, seq
  FROM versions
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY seq, collection, id
"""

SELECT_CONFLICTS = f"""
SELECT seq,
       number,
       collection,
       id,
       {_brief("entry")},
       encode(field, 'hex') AS field,
       lost_by::text,
       won_by::text
  FROM conflicts
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY seq, number
"""

SELECT_LOCAL_IDS = """
SELECT device::text,
       collection,
       local_id,
       id
  FROM local_ids
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY local_ids.device, collection, local_id
"""

_encode = msgspec.json.encode


class StoredMaster:
    """The rows of one generation of the master table, which is projected up to `position`."""

    def __init__(self, snapshot: Snapshot, generation: int, position: int):
        self._snapshot = snapshot
        self._params = {"generation": generation, "position": position}

    def records(self) -> Iterator[tuple[RowKey, Row]]:
        return self._snapshot.stream(SELECT_RECORDS, 2, self._params)

    def local_ids(self) -> Iterator[tuple[RowKey, Row]]:
        return self._snapshot.stream(SELECT_LOCAL_IDS, 3, self._params)

    def conflicts(self) -> Iterator[tuple[int, list[tuple[RowKey, Row]]]]:
        """Yields the conflicts of each event that has some: its seq, and the rows in order."""
        rows = self._snapshot.stream(SELECT_CONFLICTS, 2, self._params)
        for seq, of_event in groupby(rows, key=lambda row: row[0][0]):
            yield int(seq), list(of_event)

    def versions(self, keys: Sequence[tuple[Key, int]]) -> dict[RowKey, Row]:
        """Returns the stored versions with these keys, each a record and a seq."""
        params = {
            "collections": text_array(key[0] for key, _ in keys),
            "ids": text_array(key[1] for key, _ in keys),
            "seqs": bigint_array(seq for _, seq in keys),
        }
        rows = self._snapshot.fetch(SELECT_VERSIONS, self._params | params)
        return {row[:3]: dict(zip(_VERSION_COLUMNS, row[3:], strict=True)) for row in rows}

    def count_versions(self) -> int:
        """Returns the number of versions, without those of records that an event after the position
        erases."""
        return int(self._snapshot.fetch(COUNT_VERSIONS, self._params)[0][0])

    def version_keys(self) -> Iterator[RowKey]:
        """Yields the keys of all versions, in the order of seq."""
        return (key for key, _ in self._snapshot.stream(SELECT_VERSION_KEYS, 3, self._params))


_VERSION_COLUMNS = (
    *("own_fields", "is_deleted", "state_seq", "created_seq", "last_modified", "is_first"),
    *("apart", "own_writes"),
)


def record_row(record: StoredRecord) -> Row:
    """Returns the columns of `records` for a folded record."""
    fields, writes, apart = live_columns(record)
    return {
        "own_fields": _brief_of(fields),
        "is_deleted": record.is_deleted,
        "seq": record.seq,
        "created_seq": record.created_seq,
        "last_modified": _ms_of(record),
        "writes": _brief_of(writes),
        "deleted": _encode(record.deleted).decode() if record.deleted else None,
        "touched_seq": record.touched_seq,
        "touched_by": record.touched_by,
        "touched_seq_other": record.touched_seq_other,
        "apart": _brief_of(apart),
    }


def version_row(version: Version) -> Row:
    """Returns the columns of `versions` for a record right after an event touched it."""
    record = version.record
    return {
        "own_fields": _brief_of(version.fields),
        "is_deleted": record.is_deleted,
        "state_seq": record.seq,
        "created_seq": record.created_seq,
        "last_modified": _ms_of(record),
        "is_first": version.is_first,
        "apart": _brief_of(version.apart),
        "own_writes": _brief_of(version.writes),
    }


def conflict_rows(conflicts: Sequence[Conflict]) -> list[tuple[RowKey, Row]]:
    """Returns the rows of `conflicts` for the conflicts of one event."""
    return [
        (
            (conflict.seq, number),
            {
                "collection": conflict.collection,
                "id": conflict.id,
                "entry": _brief_of(stored_document(conflict)),
                "field": conflict.field.encode().hex(),
                "lost_by": conflict.lost.device,
                "won_by": conflict.won.device,
            },
        )
        for number, conflict in enumerate(conflicts)
    ]


def _ms_of(record: Record) -> float | None:
    return float(parse_time(record.last_modified)) if record.last_modified else None


def _brief_of(encoded: bytes | None) -> str | None:
    if encoded is None:
        return None
    if len(encoded) <= VALUE_BYTES_MAX:
        return encoded.decode()
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"
