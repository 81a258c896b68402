"""Appends events to the log of a space, and updates the tables that are derived from the events.

The table `events` has the columns that the eventsourcing library uses for the events of an
aggregate. Each space is one aggregate. So the unmodified recorder and mapper of that library can
read the table; see docs/how-to/follow-with-eventsourcing.md. Foldlog does not append with the
library's recorder, because an append must also update the head of the space and fill columns that
only Foldlog has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from foldlog.domain.access import devices_of
from foldlog.domain.erasure import erasures_of
from foldlog.domain.events import LogEntry
from foldlog.domain.merge import Key
from foldlog.domain.skipping import Skipped, skips_of
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import (
    bigint_array,
    bytea_array,
    optional_text_array,
    text_array,
    uuid_array,
)

from .copy_rows import COPY, copy_rows

# One statement is one round trip, and it also commits. The statement moves the
# head only if the log still ends where the batch begins and each id is new. If `moved` is empty,
# the other parts insert zero rows. The row lock on the space makes seq order the commit order.
# tests/integration/test_nothing_is_skipped.py fails without the condition on the head. The
# condition on the last event keeps an append from building on a log whose end is missing.
# `collections` is sent as one text for each event, because an array of arrays must be rectangular.
APPEND = """
WITH moved AS (
UPDATE spaces
   SET head = %(head)s,
       mark = %(mark)s,
       received_at_ms = %(received_at)s,
       event_bytes_max = greatest(event_bytes_max, %(bytes_max)s)
 WHERE space = %(space)s
   AND head = %(expected)s
   AND log = %(log)s
   AND mark = %(mark_before)s
   AND alarm IS NULL
   AND coalesce((SELECT max(originator_version)
                   FROM events
                  WHERE originator_id = %(space)s), 0) = %(expected)s
   AND NOT EXISTS (
           SELECT FROM events
            WHERE originator_id = %(space)s
              AND event_id = ANY(%(event_ids)s::uuid[])
       )
RETURNING space
),
counted AS (
INSERT INTO devices (space, device, counter, last_seen_ms)
SELECT space, device, counter, %(received_at)s
  FROM moved,
       unnest(%(counting)s::uuid[], %(counters)s::bigint[]) AS seen (device, counter)
    ON CONFLICT (space, device) DO UPDATE
   SET counter = excluded.counter, last_seen_ms = excluded.last_seen_ms
),
appended AS (
INSERT INTO events (
           originator_id, originator_version, topic, state,
           event_id, device, received_at_ms, collections, salt, ops_hash
       )
SELECT space, seq, topic, state,
       event_id, device, received_at_ms, string_to_array(collections, ','), salt, ops_hash
  FROM moved,
       unnest(
           %(seqs)s::bigint[], %(topics)s::text[], %(states)s::bytea[],
           %(event_ids)s::uuid[], %(devices)s::uuid[], %(times)s::bigint[],
           %(collections)s::text[], %(salts)s::bytea[], %(hashes)s::bytea[]
       ) AS new (
           seq, topic, state, event_id, device, received_at_ms, collections, salt, ops_hash
       )
)
SELECT space FROM moved
"""

# Large batches use these two statements and a COPY of the events between them, not `APPEND`.
MOVE_HEAD = """
UPDATE spaces
   SET head = %(head)s,
       mark = %(mark)s,
       received_at_ms = %(received_at)s,
       event_bytes_max = greatest(event_bytes_max, %(bytes_max)s)
 WHERE space = %(space)s
   AND head = %(expected)s
   AND log = %(log)s
   AND mark = %(mark_before)s
   AND alarm IS NULL
   AND coalesce((SELECT max(originator_version)
                   FROM events
                  WHERE originator_id = %(space)s), 0) = %(expected)s
   AND NOT EXISTS (
           SELECT FROM events
            WHERE originator_id = %(space)s
              AND event_id = ANY(%(event_ids)s::uuid[])
       )
RETURNING space
"""

COUNT_DEVICES = """
INSERT INTO devices (space, device, counter, last_seen_ms)
SELECT %(space)s, device, counter, %(received_at)s
  FROM unnest(%(counting)s::uuid[], %(counters)s::bigint[]) AS seen (device, counter)
    ON CONFLICT (space, device) DO UPDATE
   SET counter = excluded.counter, last_seen_ms = excluded.last_seen_ms
"""

INSERT_ERASURES = """
INSERT INTO erasures (space, collection, id, seq)
SELECT %(space)s, collection, id, seq
  FROM unnest(%(collections)s::text[], %(ids)s::text[], %(seqs)s::bigint[])
       AS new (collection, id, seq)
    ON CONFLICT (space, collection, id) DO UPDATE
   SET seq = excluded.seq
RETURNING seq
"""

SET_LAST_ERASURE = """
UPDATE spaces
   SET erased_seq = %(seq)s
 WHERE space = %(space)s
RETURNING erased_seq
"""

INSERT_SKIPPED = """
INSERT INTO skipped (space, seq, by_seq)
SELECT %(space)s, seq, by_seq
  FROM unnest(%(seqs)s::bigint[], %(by_seqs)s::bigint[]) AS new (seq, by_seq)
    ON CONFLICT (space, seq) DO NOTHING
RETURNING seq
"""

UPSERT_DEVICE = """
INSERT INTO devices (space, device, name, registered_at_ms, revoked_at_ms)
VALUES (%(space)s, %(device)s, %(name)s, %(registered_at)s, %(revoked_at)s)
    ON CONFLICT (space, device) DO UPDATE
   SET name = coalesce(excluded.name, devices.name),
       registered_at_ms = coalesce(devices.registered_at_ms, excluded.registered_at_ms),
       revoked_at_ms = coalesce(devices.revoked_at_ms, excluded.revoked_at_ms)
RETURNING device
"""

#: From this many events on, COPY with its further round trips is faster than arrays.
COPY_EVENTS_MIN = 64


@dataclass(frozen=True)
class LogBatch:
    """A batch of events with consecutive seqs, to be appended to one log."""

    space: str
    log: str
    mark_before: str  #: the mark of the event before the first one
    entries: Sequence[LogEntry]
    #: {device: its last counter}
    counters: Mapping[str, int] = field(default_factory=dict)


def append_batch(conn: Connection[Any], batch: LogBatch) -> bool:
    """Appends either all events of a batch or none. Returns `True` if the events were appended.

    The function returns `False` if the log has another id, head or mark than the batch expects, or
    if events are missing at its end. It also returns `False` if the log already contains an event
    with the same id as an event of the batch. If the caller has begun a transaction, the caller
    must commit the transaction. Otherwise this function commits.
    """
    erasures, skips = erasures_of(batch.entries), skips_of(batch.entries)
    devices = devices_of(batch.entries)
    if not (erasures or skips or devices):
        return _append(conn, batch)
    # These tables follow from the events, also from imported ones. They change in the transaction
    # of the events, because later pushes and projections depend on them.
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        fits = _append(conn, batch)
        if fits:
            _insert_skipped(cursor, batch.space, skips)
            for device in devices:
                params = {
                    "space": batch.space,
                    "device": device.device,
                    "name": device.name,
                    "registered_at": device.registered_at,
                    "revoked_at": device.revoked_at,
                }
                cursor.execute(UPSERT_DEVICE, params)
            _insert_erasures(cursor, batch.space, erasures)
        return fits


def _insert_skipped(cursor: Cursor[Any], space: str, skips: Sequence[Skipped]) -> None:
    if skips:
        seqs, by_seqs = map(bigint_array, zip(*skips, strict=True))
        cursor.execute(INSERT_SKIPPED, {"space": space, "seqs": seqs, "by_seqs": by_seqs})


def _insert_erasures(cursor: Cursor[Any], space: str, erasures: Mapping[Key, int]) -> None:
    if erasures:
        collections, ids = zip(*erasures, strict=True)
        params = {
            "space": space,
            "collections": text_array(collections),
            "ids": text_array(ids),
            "seqs": bigint_array(erasures.values()),
            "seq": max(erasures.values()),
        }
        cursor.execute(INSERT_ERASURES, params)
        cursor.execute(SET_LAST_ERASURE, params)


def _append(conn: Connection[Any], batch: LogBatch) -> bool:
    entries = batch.entries
    first, last = entries[0], entries[-1]
    assert first.seq == last.seq - len(entries) + 1
    params = {
        "space": batch.space,
        "log": batch.log,
        "mark_before": batch.mark_before,
        "expected": first.seq - 1,
        "head": last.seq,
        "mark": last.mark,
        "received_at": last.received_at,
        "bytes_max": max(len(entry.state) for entry in entries),
        "event_ids": uuid_array(entry.event_id for entry in entries),
        "counting": uuid_array(batch.counters),
        "counters": bigint_array(batch.counters.values()),
    }
    if len(entries) >= COPY_EVENTS_MIN:
        return _copy(conn, batch, params)
    params |= {
        "seqs": bigint_array(entry.seq for entry in entries),
        "topics": text_array(UPCASTER.topic_of(entry.kind) for entry in entries),
        "states": bytea_array(entry.state for entry in entries),
        "devices": uuid_array(entry.device for entry in entries),
        "times": bigint_array(entry.received_at for entry in entries),
        "collections": optional_text_array(
            None if entry.collections is None else ",".join(entry.collections) for entry in entries
        ),
        "salts": bytea_array(entry.salt for entry in entries),
        "hashes": bytea_array(entry.ops_hash for entry in entries),
    }
    cursor = conn.cursor(row_factory=tuple_row)
    return cursor.execute(APPEND, params, prepare=True).fetchone() is not None


def _copy(conn: Connection[Any], batch: LogBatch, params: Mapping[str, Any]) -> bool:
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute(MOVE_HEAD, params, prepare=True).fetchone() is None:
            return False
        with cursor.copy(COPY) as copying:
            copying.write(copy_rows(batch.space, batch.entries))
        cursor.execute(COUNT_DEVICES, params, prepare=True)
    return True
