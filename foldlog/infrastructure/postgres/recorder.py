"""The log on eventsourcing's aggregate recorder: one aggregate stream a space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from eventsourcing.postgres import PostgresAggregateRecorder
from psycopg import Cursor

from ...domain.events import Event, LogEntry, decode_event
from .datastore import Datastore

# `collections` travels as one text an event: an array of arrays would have to be rectangular.
# RETURNING, because a duplicate raised inside a plain insert from unnest loses its code on Citus.
INSERT_EVENTS = """
INSERT INTO events (
    originator_id, originator_version, topic, state,
    event_id, device, received_at_ms, collections, salt, ops_hash
)
SELECT %(space)s, seq, topic, state,
       event_id, device, received_at_ms, string_to_array(collections, ','), salt, ops_hash
  FROM unnest(
           %(seqs)s::bigint[], %(topics)s::text[], %(states)b::bytea[],
           %(event_ids)s::uuid[], %(devices)s::uuid[], %(times)s::bigint[],
           %(collections)s::text[], %(salts)b::bytea[], %(hashes)b::bytea[]
       ) AS new (
           seq, topic, state, event_id, device, received_at_ms, collections, salt, ops_hash
       )
RETURNING originator_version
"""

#: Version of the stored form. A new one gets an upcast in `EventMapper`, never a rewrite.
STORED_FORM = 1


@dataclass(frozen=True)
class StoredLogEntry(StoredEvent):
    """A stored event, and the columns that the service looks it up by."""

    entry: LogEntry


class _NoTranscoder(Transcoder):
    """`state` is bytes that are made once, when the event is; there is nothing to transcode.

    That also keeps a user's own `{"_type_": ...}` what it is.
    """

    def encode(self, obj: Any) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        return decode_event(data)


class EventMapper(Mapper[str]):
    """Between the log's entries and rows. Topics are `<kind>/<version of the stored form>`."""

    def __init__(self) -> None:
        super().__init__(_NoTranscoder())

    def to_stored(self, space: str, entry: LogEntry) -> StoredLogEntry:
        return StoredLogEntry(
            originator_id=space,
            originator_version=entry.seq,
            topic=f"{entry.kind}/{STORED_FORM}",
            state=entry.state,
            entry=entry,
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Event:  # type: ignore[override]
        return self.decode(stored_event.topic, stored_event.state)

    def decode(self, topic: str, state: bytes) -> Event:
        kind, _, version = topic.rpartition("/")
        if not kind or int(version) > STORED_FORM:
            raise ValueError(f"an event of the unknown form {topic!r}: a newer version wrote it")
        event: Event = self.transcoder.decode(state)
        return event


class LogRecorder(PostgresAggregateRecorder):
    """Appends entries, all of one space, inside the transaction that holds the space's row."""

    def __init__(self, datastore: Datastore):
        super().__init__(datastore, events_table_name="events")
        self.mapper = EventMapper()

    def append(self, cursor: Cursor[Any], space: str, entries: Sequence[LogEntry]) -> None:
        self._insert_stored_events(cursor, [self.mapper.to_stored(space, e) for e in entries])

    def _insert_stored_events(
        self, curs: Cursor[Any], stored_events: Sequence[StoredEvent], **_: Any
    ) -> None:
        rows = [event for event in stored_events if isinstance(event, StoredLogEntry)]
        assert len(rows) == len(stored_events) > 0
        assert len({row.originator_id for row in rows}) == 1, "one space a transaction"
        entries = [row.entry for row in rows]
        curs.execute(
            INSERT_EVENTS,
            {
                "space": rows[0].originator_id,
                "seqs": [row.originator_version for row in rows],
                "topics": [row.topic for row in rows],
                "states": [row.state for row in rows],
                "event_ids": [entry.event_id for entry in entries],
                "devices": [entry.device for entry in entries],
                "times": [entry.received_at for entry in entries],
                "collections": [
                    None if entry.collections is None else ",".join(entry.collections)
                    for entry in entries
                ],
                "salts": [entry.salt for entry in entries],
                "hashes": [entry.ops_hash for entry in entries],
            },
            prepare=True,
        )
