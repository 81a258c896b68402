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

from foldlog.domain.events import Event
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import FOLD_VERSION, Key, Record, fold
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import integer_array, text_array, uuid_array
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, TOPIC_TO_FOLD, select_page
from foldlog.infrastructure.postgres.projection import Generation

from .conflict_rows import INSERT_CONFLICTS, ConflictRows
from .record_cache import CACHE_BYTES, RecordCache
from .record_rows import WRITE_STATES, StateRows, lacks_values, record_of, select_wanted

SELECT_EVENTS = select_page(
    f"""originator_version,
       {TOPIC_TO_FOLD},
       {STATE_TO_FOLD}"""
)

SELECT_RECORDS = select_wanted("%(space)s", "%(generation)s")

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
       space, generation, seq, number, collection, id, document, field, lost_by, won_by
)
SELECT space, generation, seq,
       row_number() OVER (PARTITION BY generation, seq ORDER BY number) - 1,
       collection, id, document, field, lost_by, won_by
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


class RecordsTooLarge(Exception):
    """The records that events touch exceed `touched_bytes_per_event_max` bytes in total.

    The projector then tries again with fewer events. If the records of a single event exceed the
    limit, the projection of the space halts at this event.
    """


class MasterProjection:
    """Folds events into one generation of the master table.

    For each page of events it reads each touched record once and folds the events in memory. It
    then writes each touched record, and one version of the record for each event that touched it.

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

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._bytes_max = limits.touched_bytes_per_event_max

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
        touched = [event.keys for event in events]
        records = self._load(to, {key for keys in touched for key in keys})
        states, ledger = StateRows(records), ConflictRows()
        size = start = 0
        for end, (event, keys) in enumerate(zip(events, touched, strict=True), start=1):
            is_full = False
            for number, conflict in enumerate(fold(records, event)):
                if ledger.add(number, conflict):
                    size += self._write(to, INSERT_CONFLICTS, ledger)
                    is_full = True
            for key in keys:
                if states.add(key, records[key]):
                    size += self._write(to, WRITE_STATES, states)
                    is_full = True
            if is_full or end == len(events):
                size += self._write(to, WRITE_STATES, states)
                size += self._write(to, INSERT_CONFLICTS, ledger)
                self._insert_local_ids(to, events[start:end])
                to.cache.add(records, size, event.seq)
                yield
                size, start = 0, end

    def _load(self, to: Generation[RecordCache], keys: set[Key]) -> dict[Key, Record]:
        """Returns {key: record}, from the cache if it has the record, otherwise from the database.

        If a record does not exist, the result lacks its key. Raises `RecordsTooLarge` if the
        records in the database exceed the limit of bytes. The caller can then try again with fewer
        events.
        """
        records = to.cache.find(keys)
        missing = keys - records.keys()
        if missing and not to.cache.is_complete:
            params = {
                **to.params,
                "collections": text_array(collection for collection, _ in missing),
                "ids": text_array(id for _, id in missing),
                "bytes_max": self._bytes_max,
            }
            rows = to.reader.execute(SELECT_RECORDS, params, prepare=True).fetchall()
            if any(map(lacks_values, rows)):
                raise RecordsTooLarge(
                    "the records that the event touches are larger than "
                    f"touched_bytes_per_event_max = {self._bytes_max} bytes"
                )
            records |= {(row[0], row[1]): record_of(row) for row in rows}
        return records

    def _write(
        self, to: Generation[RecordCache], statement: str, rows: StateRows | ConflictRows
    ) -> int:
        if not rows:
            return 0
        columns = rows.take()
        to.send(statement, columns)
        return sum(map(len, columns.values()))

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
