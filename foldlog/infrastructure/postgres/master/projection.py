"""Defines the projection that fills the master table.

The projection writes the current records, all their versions, the conflict ledger, and the local
ids of the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from msgspec import UNSET
from psycopg import Cursor

from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import (
    FOLD_VERSION,
    Conflict,
    Key,
    cause_of,
    fold_record,
)
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import integer_array, text_array, uuid_array
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, TOPIC_TO_FOLD, select_page
from foldlog.infrastructure.postgres.projection import Generation

from .conflict_rows import INSERT_CONFLICTS, ConflictRows
from .record_cache import CACHE_BYTES, RecordCache
from .record_reader import RecordReader
from .record_rows import WRITE_STATES, StateRows
from .stored_form import StoredRecord, keep_in_log, pack, stored_tombstone

SELECT_EVENTS = select_page(
    f"""originator_version,
       {TOPIC_TO_FOLD},
       {STATE_TO_FOLD}"""
)

# Deletes the conflicts of an erased record. A rebuild would number the other conflicts of the same
# events as if these had never existed. So this statement also deletes those and inserts them again
# with new numbers. The sort for the numbers makes all deletes happen before the first insert.
DELETE_CONFLICTS = """
WITH affected AS (
SELECT DISTINCT generation, seq
  FROM conflicts
 WHERE space = %(space)s
   AND generation = ANY(%(generations)s::integer[])
   AND collection = %(collection)s
   AND id = %(id)s
),
gone AS (
DELETE FROM conflicts c
 USING affected a
 WHERE c.space = %(space)s
   AND c.generation = a.generation
   AND c.seq = a.seq
RETURNING c.*
)
INSERT INTO conflicts (
       space, generation, seq, number, collection, id, entry, field, lost_by, won_by
)
SELECT space, generation, seq,
       row_number() OVER (PARTITION BY generation, seq ORDER BY number) - 1,
       collection, id, entry, field, lost_by, won_by
  FROM gone
 WHERE (collection, id) <> (%(collection)s, %(id)s)
RETURNING seq
"""

DELETE_RECORD = """
DELETE FROM records
 WHERE space = %(space)s
   AND generation = ANY(%(generations)s::integer[])
   AND collection = %(collection)s
   AND id = %(id)s
RETURNING id
"""

DELETE_VERSIONS = """
DELETE FROM versions
 WHERE space = %(space)s
   AND generation = ANY(%(generations)s::integer[])
   AND collection = %(collection)s
   AND id = %(id)s
RETURNING id
"""

DELETE_LOCAL_IDS = """
DELETE FROM local_ids
 WHERE space = %(space)s
   AND generation = ANY(%(generations)s::integer[])
   AND collection = %(collection)s
   AND id = %(id)s
RETURNING id
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
    """Folds events into one generation of the master table, record by record.

    It reads the records that the next events touch in advance, as far as they fit into memory, and
    folds the operations of each event on one record after the other. It writes each touched record,
    and one version of the record for each event that touched it.

    The rows of a page are written in parts, so that few rows wait in memory. A part ends when
    enough rows for one SQL statement are collected. In pipeline mode PostgreSQL writes one part
    while this code folds the events of the next part.
    """

    name = "master"
    version = FOLD_VERSION
    tables = {
        "records": "collection, id",
        "versions": "collection, id, seq",
        "conflicts": "seq, number",
        "local_ids": "device, collection, local_id",
    }

    select_page = SELECT_EVENTS
    pause_seconds = 0.0

    def new_cache(self, position: int, *, bytes_max: int = CACHE_BYTES) -> RecordCache:
        return RecordCache(position, bytes_max=bytes_max)

    def apply(
        self, to: Generation[RecordCache], rows: Sequence[tuple[int, str, bytes]]
    ) -> Iterator[None]:
        events = [UPCASTER.decode(topic, state) for _, topic, state in rows]
        for part in _parts(events):
            yield from self._apply(to, part)

    def delete_record(
        self, cursor: Cursor[Any], space: str, generations: list[int], key: Key
    ) -> None:
        """Deletes a record from the given generations, with its versions, conflicts and local ids.

        The caller must have locked these generations.
        """
        params = {
            "space": space,
            "generations": integer_array(generations),
            "collection": key[0],
            "id": key[1],
        }
        for statement in (DELETE_RECORD, DELETE_VERSIONS, DELETE_CONFLICTS, DELETE_LOCAL_IDS):
            cursor.execute(statement, params)

    def _apply(self, to: Generation[RecordCache], events: Sequence[Event]) -> Iterator[None]:
        erased = events[0].erased_key
        if erased is not None:
            to.cache.remove(erased)
            self.delete_record(to.cursor, to.space, [to.number], erased)
        writer = _Writer(to)
        reader = RecordReader(to, (key for event in events for key in event.keys), writer.flush)
        start = 0
        for end, event in enumerate(events, start=1):
            self._fold(to, event, reader, writer)
            if writer.has_written or end == len(events):
                writer.flush()
                self._insert_local_ids(to, events[start:end])
                to.cache.position = event.seq
                writer.has_written = False
                yield
                start = end

    def _fold(
        self, to: Generation[RecordCache], event: Event, reader: RecordReader, writer: _Writer
    ) -> None:
        erased = event.erased_key
        if erased is not None:
            record = stored_tombstone(erased, event)
            writer.add(erased, StoredRecord(*erased), record, ())
        if not event.is_stored_changeset:
            return
        cause = cause_of(event)
        logged = [
            value
            for number, op in enumerate(event.ops)
            for value in keep_in_log(op, number, event.seq, to.cache.values)
        ]
        number = 0
        for key, ops in event.ops_by_record.items():
            conflicts: list[Conflict] = []
            before = reader.read(key)
            record = fold_record(before, ops, cause, conflicts)
            for conflict in conflicts:
                writer.add_conflict(number, conflict)
                number += 1
            writer.add(key, before, record, ops)
        for value in logged:
            value.release()

    def _insert_local_ids(self, to: Generation[RecordCache], events: Sequence[Event]) -> None:
        named = [
            (str(event.device), op.collection, op.local_id, op.id)
            for event in events
            for op in event.ops
            if op.local_id is not UNSET and op.id is not UNSET
        ]
        if named:
            devices, collections, local_ids, ids = zip(*named, strict=True)
            params = {
                "devices": uuid_array(devices),
                "collections": text_array(collections),
                "local_ids": text_array(local_ids),
                "ids": text_array(ids),
            }
            to.send(INSERT_LOCAL_IDS, params)


class _Writer:
    """Collects the rows of a part, and writes them when they are enough for a statement."""

    def __init__(self, to: Generation[RecordCache]):
        self._to = to
        self._states, self._ledger = StateRows(), ConflictRows()
        self.has_written = False

    def add(
        self, key: Key, before: StoredRecord, record: StoredRecord, ops: Sequence[Operation]
    ) -> None:
        """Adds a record that an event has changed from `before` by the operations `ops`."""
        is_full = self._states.add(key, pack(before, record, ops))
        self._to.cache.add_changed(key, record)
        if is_full:
            self.flush()

    def add_conflict(self, number: int, conflict: Conflict) -> None:
        if self._ledger.add(number, conflict):
            self.flush()

    def flush(self) -> None:
        """Writes all collected rows."""
        for statement, rows in (
            (WRITE_STATES, self._states),
            (INSERT_CONFLICTS, self._ledger),
        ):
            if rows:
                columns = rows.take()
                self._to.send(statement, columns)
                self._to.cache.bytes_uncommitted += sum(map(len, columns.values()))
                self.has_written = True


def _parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Splits a page of events into parts. A new part begins at each event that erases a record.

    Such an event deletes rows in the database. So the rows of all earlier events must be written
    before it.
    """
    starts = [n for n, event in enumerate(events) if event.erased_key is not None]
    if not starts:
        yield events
        return
    for start, end in pairwise(sorted({0, *starts, len(events)})):
        yield events[start:end]
