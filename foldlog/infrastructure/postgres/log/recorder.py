"""The log on eventsourcing's aggregate recorder: one aggregate stream a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from eventsourcing.postgres import PostgresAggregateRecorder
from psycopg import Connection
from psycopg.rows import tuple_row

from foldlog.domain.access import Device, devices_of
from foldlog.domain.erasure import erasures_of
from foldlog.domain.events import Event, LogEntry, decode_event
from foldlog.domain.skipping import skips_of
from foldlog.domain.upcasts import UPCASTER, Upcaster
from foldlog.infrastructure.postgres.connection.arrays import (
    bigint_array,
    bytea_array,
    optional_text_array,
    text_array,
    uuid_array,
)

# Appending is moving the head, if it is still where the decision saw it: the row's lock makes seq
# order commit order, and whoever decided on an older head, or on an id that is stored already,
# appends nothing. `space` in the others comes from here, so without it they do nothing.
# tests/integration/test_nothing_is_skipped.py fails without the condition.
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
   AND NOT EXISTS (
           SELECT FROM events
            WHERE originator_id = %(space)s
              AND event_id = ANY(%(event_ids)s::uuid[])
       )
RETURNING space
"""

_COUNT_DEVICES = """
INSERT INTO devices (space, device, counter, last_seen_ms)
SELECT space, device, counter, %(received_at)s
  FROM {space},
       unnest(%(counting)s::uuid[], %(counters)s::bigint[]) AS seen (device, counter)
    ON CONFLICT (space, device) DO UPDATE
   SET counter = excluded.counter, last_seen_ms = excluded.last_seen_ms
"""

COUNT_DEVICES = _COUNT_DEVICES.format(space="(SELECT %(space)s AS space) moved")

COLUMNS = (
    "originator_id, originator_version, topic, state, "
    "event_id, device, received_at_ms, collections, salt, ops_hash"
)

# All of it in one statement, so in one round trip, which is also the commit.
# `collections` travels as one text an event: an array of arrays would have to be rectangular.
APPEND = f"""
WITH moved AS ({MOVE_HEAD}),
counted AS ({_COUNT_DEVICES.format(space="moved")}),
appended AS (
INSERT INTO events ({COLUMNS})
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

NOTE_ERASURES = """
INSERT INTO erasures (space, collection, id, seq)
SELECT %(space)s, collection, id, seq
  FROM unnest(%(collections)s::text[], %(ids)s::text[], %(seqs)s::bigint[])
       AS new (collection, id, seq)
    ON CONFLICT (space, collection, id) DO UPDATE
   SET seq = excluded.seq
RETURNING seq
"""

NOTE_SKIPPED = """
INSERT INTO skipped (space, seq, by_seq)
SELECT %(space)s, seq, by_seq
  FROM unnest(%(seqs)s::bigint[], %(by_seqs)s::bigint[]) AS new (seq, by_seq)
    ON CONFLICT (space, seq) DO NOTHING
RETURNING seq
"""

NOTE_LAST_ERASURE = """
UPDATE spaces
   SET erased_seq = %(seq)s
 WHERE space = %(space)s
RETURNING erased_seq
"""

NOTE_DEVICE = """
INSERT INTO devices (space, device, name, registered_at_ms, revoked_at_ms)
VALUES (%(space)s, %(device)s, %(name)s, %(registered_at)s, %(revoked_at)s)
    ON CONFLICT (space, device) DO UPDATE
   SET name = coalesce(excluded.name, devices.name),
       registered_at_ms = coalesce(devices.registered_at_ms, excluded.registered_at_ms),
       revoked_at_ms = coalesce(devices.revoked_at_ms, excluded.revoked_at_ms)
RETURNING device
"""

COPY = f"COPY events ({COLUMNS}) FROM STDIN (FORMAT binary)"
#: from so many on, COPY and its further round trips are quicker than arrays in one statement
COPY_EVENTS_MIN = 64


class _NoTranscoder(Transcoder):
    """`state` is bytes that are made once, when the event is; there is nothing to transcode.

    That also keeps a user's own `{"_type_": ...}` what it is.
    """

    def encode(self, obj: Any) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        return decode_event(data)


class EventMapper(Mapper[str]):
    """Between the log's rows and events, whatever form they were stored in."""

    def __init__(self, forms: Upcaster = UPCASTER) -> None:
        super().__init__(_NoTranscoder())
        self._forms = forms

    def to_domain_event(self, stored_event: StoredEvent) -> Event:  # type: ignore[override]
        return self.decode(stored_event.topic, stored_event.state)

    def decode(self, topic: str, state: bytes) -> Event:
        """Raises `UnknownForm`."""
        event: Event = self.transcoder.decode(self._forms.upcast(topic, state))
        return event


class LogRecorder(PostgresAggregateRecorder):
    """Appends entries, all of one space, and moves what moves with them.

    `append` and not the library's `insert_events`: that one knows no head, and the table refuses
    rows without our columns.
    """

    def append(
        self,
        conn: Connection[Any],
        space: str,
        log: str,
        mark_before: str,
        entries: Sequence[LogEntry],
        counters: Mapping[str, int],
    ) -> bool:
        """Appends all entries and keeps the devices' counters; or nothing, and `False`.

        `False`: the log does not end right before them, with an event of `mark_before`, or the id
        of one is stored already.
        Commits, unless a transaction is under way.
        """
        erasures, skips, devices = erasures_of(entries), skips_of(entries), devices_of(entries)
        if not (erasures or skips or devices):
            return self._append(conn, space, log, mark_before, entries, counters)
        # However an erasure comes to the log, what has not seen it must be told by it; whoever
        # folds must know of what is stepped over before it comes to that; and who was revoked is
        # to be kept out of an imported log, too.
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            fits = self._append(conn, space, log, mark_before, entries, counters)
            if fits and skips:
                seqs, by_seqs = map(bigint_array, zip(*skips, strict=True))
                cursor.execute(NOTE_SKIPPED, {"space": space, "seqs": seqs, "by_seqs": by_seqs})
            for device in devices if fits else ():
                cursor.execute(NOTE_DEVICE, _named(space, device))
            if fits and erasures:
                collections, ids = zip(*erasures, strict=True)
                names = {
                    "space": space,
                    "collections": text_array(collections),
                    "ids": text_array(ids),
                    "seqs": bigint_array(erasures.values()),
                    "seq": max(erasures.values()),
                }
                cursor.execute(NOTE_ERASURES, names)
                cursor.execute(NOTE_LAST_ERASURE, names)
            return fits

    def _append(
        self,
        conn: Connection[Any],
        space: str,
        log: str,
        mark_before: str,
        entries: Sequence[LogEntry],
        counters: Mapping[str, int],
    ) -> bool:
        last = entries[-1]
        assert entries[0].seq == last.seq - len(entries) + 1
        names = {
            "space": space,
            "log": log,
            "mark_before": mark_before,
            "expected": entries[0].seq - 1,
            "head": last.seq,
            "mark": last.mark,
            "received_at": last.received_at,
            "bytes_max": max(len(entry.state) for entry in entries),
            "event_ids": uuid_array(entry.event_id for entry in entries),
            "counting": uuid_array(counters),
            "counters": bigint_array(counters.values()),
        }
        if len(entries) >= COPY_EVENTS_MIN:
            return self._copy(conn, space, entries, names)
        names |= {
            "seqs": bigint_array(entry.seq for entry in entries),
            "topics": text_array(UPCASTER.topic_of(entry.kind) for entry in entries),
            "states": bytea_array(entry.state for entry in entries),
            "devices": uuid_array(entry.device for entry in entries),
            "times": bigint_array(entry.received_at for entry in entries),
            "collections": optional_text_array(
                None if entry.collections is None else ",".join(entry.collections)
                for entry in entries
            ),
            "salts": bytea_array(entry.salt for entry in entries),
            "hashes": bytea_array(entry.ops_hash for entry in entries),
        }
        cursor = conn.cursor(row_factory=tuple_row)
        return cursor.execute(APPEND, names, prepare=True).fetchone() is not None

    def _copy(
        self,
        conn: Connection[Any],
        space: str,
        entries: Sequence[LogEntry],
        names: Mapping[str, Any],
    ) -> bool:
        with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
            if cursor.execute(MOVE_HEAD, names, prepare=True).fetchone() is None:
                return False
            with cursor.copy(COPY) as copying:
                copying.write(copy_rows(space, entries))
            cursor.execute(COUNT_DEVICES, names, prepare=True)
        return True


def _named(space: str, device: Device) -> dict[str, Any]:
    return {
        "space": space,
        "device": device.device,
        "name": device.name,
        "registered_at": device.registered_at,
        "revoked_at": device.revoked_at,
    }


# PostgreSQL's binary COPY format ("COPY", section "Binary Format"): a row is the number of its
# columns, and of each the length and the bytes. Made by hand, a row costs a fifth of what psycopg
# needs, and these are most of what a large append costs here.

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_int2, _int4, _int8 = (Struct(form).pack for form in ("!h", "!i", "!q"))
_LENGTH_OF_INT8 = _int4(8)
_LENGTH_OF_UUID = _int4(16)


def copy_rows(space: str, entries: Sequence[LogEntry]) -> bytes:
    """The rows of `COPY`, in the order of `COLUMNS`."""
    start = _int2(10) + _value(space.encode()) + _LENGTH_OF_INT8
    parts = [_HEADER]
    for entry in entries:
        parts += (
            start,
            _int8(entry.seq),
            _text(UPCASTER.topic_of(entry.kind)),
            _int4(len(entry.state)),
            entry.state,
            _LENGTH_OF_UUID,
            bytes.fromhex(entry.event_id.replace("-", "")),
            _NULL if entry.device is None else _uuid(entry.device),
            _LENGTH_OF_INT8,
            _int8(entry.received_at),
            _NULL if entry.collections is None else _text_array(*entry.collections),
            _int4(len(entry.salt)),
            entry.salt,
            _int4(len(entry.ops_hash)),
            entry.ops_hash,
        )
    parts.append(_TRAILER)
    return b"".join(parts)


def _value(data: bytes) -> bytes:
    return _int4(len(data)) + data


@lru_cache(maxsize=64)
def _text(text: str) -> bytes:
    return _value(text.encode())


@lru_cache(maxsize=1_024)
def _uuid(text: str) -> bytes:
    return _value(bytes.fromhex(text.replace("-", "")))


@lru_cache(maxsize=1_024)
def _text_array(*texts: str) -> bytes:
    return _value(text_array(texts))
