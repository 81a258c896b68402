"""The projection that writes the master table, the conflict ledger and the local ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg import Cursor

from ...domain.events import Event
from ...domain.merge import Conflict, Key, Record, conflict_document, fold
from .record_rows import COLUMNS, UPSERT_RECORDS, columns_of, record_of

SELECT_RECORDS = f"""
SELECT {COLUMNS}
  FROM records
  JOIN unnest(%(collections)s::text[], %(ids)s::text[]) AS wanted (collection, id)
 USING (collection, id)
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY collection, id
"""

INSERT_CONFLICTS = """
INSERT INTO conflicts (space, generation, seq, number, collection, id, document)
SELECT %(space)s, %(generation)s, seq, number, collection, id, document
  FROM unnest(
           %(seqs)s::bigint[], %(numbers)s::integer[],
           %(collections)s::text[], %(ids)s::text[], %(documents)s::json[]
       ) AS new (seq, number, collection, id, document)
RETURNING seq
"""

INSERT_LOCAL_IDS = """
INSERT INTO local_ids (space, generation, device, collection, local_id, id)
SELECT %(space)s, %(generation)s, device, collection, local_id, id
  FROM unnest(
           %(devices)s::uuid[], %(collections)s::text[], %(local_ids)s::text[], %(ids)s::text[]
       ) AS new (device, collection, local_id, id)
    ON CONFLICT (space, generation, device, collection, local_id) DO NOTHING
RETURNING id
"""


class MasterProjection:
    """Folds a batch of events into one generation of the master table.

    The batch's records are read once, folded in memory, and written once, however often the
    batch touches them.
    """

    name = "master"
    #: what a generation consists of, each with the columns by which its rows are told apart
    tables = {
        "records": "collection, id",
        "conflicts": "seq, number",
        "local_ids": "device, collection, local_id",
    }

    def apply(
        self, cursor: Cursor[Any], space: str, generation: int, events: Sequence[Event]
    ) -> None:
        where = {"space": space, "generation": generation}
        keys = {op.key for event in events if event.is_stored_changeset for op in event.ops}
        records = self._load(cursor, where, keys) if keys else {}
        conflicts: list[tuple[int, Conflict]] = []
        for event in events:
            conflicts += enumerate(fold(records, event))
        for columns in columns_of(records.values()):
            cursor.execute(UPSERT_RECORDS, {**where, **columns}, prepare=True)
        if conflicts:
            self._insert_conflicts(cursor, where, conflicts)
        self._insert_local_ids(cursor, where, events)

    def _load(
        self, cursor: Cursor[Any], where: dict[str, Any], keys: set[Key]
    ) -> dict[Key, Record]:
        collections, ids = zip(*keys, strict=True)
        names = {**where, "collections": list(collections), "ids": list(ids)}
        rows = cursor.execute(SELECT_RECORDS, names, prepare=True).fetchall()
        return {(row[0], row[1]): record_of(row) for row in rows}

    def _insert_conflicts(
        self, cursor: Cursor[Any], where: dict[str, Any], conflicts: list[tuple[int, Conflict]]
    ) -> None:
        cursor.execute(
            INSERT_CONFLICTS,
            {
                **where,
                "seqs": [conflict.seq for _, conflict in conflicts],
                "numbers": [number for number, _ in conflicts],
                "collections": [conflict.collection for _, conflict in conflicts],
                "ids": [conflict.id for _, conflict in conflicts],
                "documents": [
                    msgspec.json.encode(conflict_document(conflict)).decode()
                    for _, conflict in conflicts
                ],
            },
            prepare=True,
        )

    def _insert_local_ids(
        self, cursor: Cursor[Any], where: dict[str, Any], events: Sequence[Event]
    ) -> None:
        named = [
            (event.device, op.collection, op.local_id, op.id)
            for event in events
            for op in event.ops
            if op.local_id is not msgspec.UNSET
        ]
        if named:
            devices, collections, local_ids, ids = (
                list(column) for column in zip(*named, strict=True)
            )
            cursor.execute(
                INSERT_LOCAL_IDS,
                {
                    **where,
                    "devices": devices,
                    "collections": collections,
                    "local_ids": local_ids,
                    "ids": ids,
                },
                prepare=True,
            )
