"""The projection that writes the master table, its versions, the conflict ledger, the local ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from msgspec import UNSET
from psycopg import Cursor
from psycopg.sql import SQL, Identifier

from foldlog.domain.events import Event
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.merge import FOLD_VERSION, Key, Record, fold
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.arrays import integer_array, text_array, uuid_array
from foldlog.infrastructure.postgres.log.pages import STATE_TO_FOLD, TOPIC_TO_FOLD
from foldlog.infrastructure.postgres.projection import Generation

from .ledger_rows import INSERT_CONFLICTS, Ledger
from .record_rows import WRITE_STATES, States, lacks_values, record_of, select_wanted

SELECT_RECORDS = select_wanted("%(space)s", "%(generation)s")

# What lost on an erased record goes, and what lost in the same events on others is numbered as if
# it had never been: a rebuild finds it so. Those rows are deleted and inserted again by one
# statement; the sort for their numbers has every one deleted before the first is inserted.
FORGET_CONFLICTS = """
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

FORGET_ROWS = """
DELETE FROM {table}
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

#: of rows whose records are kept in memory, where they take some three times as much
KNOWN_BYTES = 64 * 2**20


class Known:
    """Records of a generation as they are at a position, so that they need not be read again.

    Right as long as the generation is at `position`, whoever brought it there: its rows are the
    fold of the log up to that. What is not committed yet is kept whatever it takes, since only the
    transaction that wrote it could read it; of what is, the part that was touched lately.
    """

    def __init__(self, position: int, *, bytes_max: int = KNOWN_BYTES):
        self._bytes_max = bytes_max
        self.forget(position)

    def forget(self, position: int) -> None:
        """Begins anew, at a position."""
        self.position = position
        self.is_all = position == 0  #: whether there are no others in the generation
        self.bytes_uncommitted = 0
        self._bytes = 0
        self._late: dict[Key, Record] = {}
        self._early: dict[Key, Record] = {}

    def find(self, keys: set[Key]) -> dict[Key, Record]:
        found = {}
        for key in keys:
            record = self._late.get(key) or self._early.get(key)
            if record is not None:
                found[key] = record
        return found

    def note(self, records: dict[Key, Record], size: int, position: int) -> None:
        """What was written, in so many bytes; the generation is at `position` with it."""
        self._late |= records
        self.bytes_uncommitted += size
        self.position = position

    def drop(self, key: Key) -> None:
        """A record that is about to be replaced, and must not be kept here as it was."""
        self._late.pop(key, None)
        self._early.pop(key, None)

    def committed(self) -> None:
        """Keeps within the bounds. Of two parts the one that was not touched lately goes."""
        self._bytes += self.bytes_uncommitted
        self.bytes_uncommitted = 0
        if self._bytes > self._bytes_max / 2:
            self.is_all = self.is_all and self._early.keys() <= self._late.keys()
            self._early, self._late = self._late, {}
            self._bytes = 0


class TooMuchTouched(Exception):
    """By one event: its records do not fit into memory together."""


class MasterProjection:
    """Folds events into one generation of the master table.

    The records that a batch touches are read once, folded in memory, and written once, however
    often it touches them; their versions are as many as the events that touched them. A batch is
    written in parts: one ends with the event that fills a statement, and nothing of it is kept but
    its records. What is sent is not waited for, if the connection is in pipeline mode: PostgreSQL
    writes one part while the next one is folded.
    """

    name = "master"
    version = FOLD_VERSION
    tables = {
        "records": "collection, id",
        "versions": "collection, id, seq",
        "conflicts": "seq, number",
        "local_ids": "device, collection, local_id",
    }

    columns = f"{TOPIC_TO_FOLD}, {STATE_TO_FOLD}"
    pause_seconds = 0.0

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._bytes_max = limits.touched_bytes_per_event_max

    def memory(self, position: int, *, bytes_max: int = KNOWN_BYTES) -> Known:
        return Known(position, bytes_max=bytes_max)

    def apply(
        self, to: Generation[Known], rows: Sequence[tuple[int, str, bytes]]
    ) -> Iterator[None]:
        events = [UPCASTER.decode(topic, state) for _, topic, state in rows]
        for part in _parts(events):
            yield from self._apply(to, part)

    def forget(self, cursor: Cursor[Any], space: str, generations: list[int], key: Key) -> None:
        """Takes what is kept of a record out of these generations, which must be locked."""
        names = {
            "space": space,
            "generations": integer_array(generations),
            "collection": key[0],
            "id": key[1],
        }
        for table in self.tables:
            if table == "conflicts":
                cursor.execute(FORGET_CONFLICTS, names)
            else:
                cursor.execute(SQL(FORGET_ROWS).format(table=Identifier(table)), names)

    def _apply(self, to: Generation[Known], events: Sequence[Event]) -> Iterator[None]:
        erased = events[0].erased_key
        if erased is not None:
            to.known.drop(erased)
            self.forget(to.cursor, to.space, [to.number], erased)
        touched = [event.keys for event in events]
        records = self._load(to, {key for keys in touched for key in keys})
        states, ledger = States(records), Ledger()
        size = start = 0
        for end, (event, keys) in enumerate(zip(events, touched, strict=True), start=1):
            is_full = False
            for number, conflict in enumerate(fold(records, event)):
                if ledger.note(number, conflict):
                    size += self._write(to, INSERT_CONFLICTS, ledger)
                    is_full = True
            for key in keys:
                if states.note(key, records[key]):
                    size += self._write(to, WRITE_STATES, states)
                    is_full = True
            if is_full or end == len(events):
                size += self._write(to, WRITE_STATES, states)
                size += self._write(to, INSERT_CONFLICTS, ledger)
                self._insert_local_ids(to, events[start:end])
                to.known.note(records, size, event.seq)
                yield
                size, start = 0, end

    def _load(self, to: Generation[Known], keys: set[Key]) -> dict[Key, Record]:
        """Raises `TooMuchTouched`: then fewer events may be what can be folded at a time."""
        records = to.known.find(keys)
        missing = keys - records.keys()
        if missing and not to.known.is_all:
            names = {
                "collections": text_array(collection for collection, _ in missing),
                "ids": text_array(id for _, id in missing),
                "bytes_max": self._bytes_max,
            }
            rows = to.reader.execute(SELECT_RECORDS, {**to.names, **names}, prepare=True).fetchall()
            if any(map(lacks_values, rows)):
                raise TooMuchTouched(
                    f"the records that it touches are more than {self._bytes_max} bytes: "
                    "see touched_bytes_per_event_max"
                )
            records |= {(row[0], row[1]): record_of(row) for row in rows}
        return records

    def _write(self, to: Generation[Known], statement: str, rows: States | Ledger) -> int:
        if not rows:
            return 0
        columns = rows.take()
        to.send(statement, columns)
        return sum(map(len, columns.values()))

    def _insert_local_ids(self, to: Generation[Known], events: Sequence[Event]) -> None:
        named = [
            (str(event.device), op.collection, op.local_id, op.id)
            for event in events
            for op in event.ops
            if op.local_id is not UNSET and op.id is not UNSET
        ]
        if named:
            devices, collections, local_ids, ids = zip(*named, strict=True)
            names = {
                "devices": uuid_array(devices),
                "collections": text_array(collections),
                "local_ids": text_array(local_ids),
                "ids": text_array(ids),
            }
            to.send(INSERT_LOCAL_IDS, names)


def _parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Parts of which each begins with an erasure, but the first perhaps: what an erasure takes
    away must have been written before it."""
    starts = [n for n, event in enumerate(events) if event.erased_key is not None]
    if not starts:
        yield events
        return
    for start, end in pairwise(sorted({0, *starts, len(events)})):
        yield events[start:end]
