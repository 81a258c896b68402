"""The projection that writes the master table, the conflict ledger and the local ids."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from ...domain.events import Event
from ...domain.merge import FOLD_VERSION, Conflict, Key, Record, conflict_document, fold
from .arrays import bigint_array, integer_array, json_array, text_array, uuid_array
from .projection import Generation
from .record_rows import COLUMNS, UPSERT_RECORDS, columns_of, record_of
from .recorder import EventMapper

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

    def committed(self) -> None:
        """Keeps within the bounds. Of two parts the one that was not touched lately goes."""
        self._bytes += self.bytes_uncommitted
        self.bytes_uncommitted = 0
        if self._bytes > self._bytes_max / 2:
            self.is_all = self.is_all and self._early.keys() <= self._late.keys()
            self._early, self._late = self._late, {}
            self._bytes = 0


class MasterProjection:
    """Folds events into one generation of the master table.

    The records that a batch touches are read once, folded in memory, and written once, however
    often it touches them. What is executed is not waited for, if the connection is in pipeline
    mode: PostgreSQL writes one batch while the next one is folded.
    """

    name = "master"
    version = FOLD_VERSION
    tables = {
        "records": "collection, id",
        "conflicts": "seq, number",
        "local_ids": "device, collection, local_id",
    }

    columns = "topic, state"
    pause_seconds = 0.0

    def __init__(self) -> None:
        self._mapper = EventMapper()

    def memory(self, position: int, *, bytes_max: int = KNOWN_BYTES) -> Known:
        return Known(position, bytes_max=bytes_max)

    def apply(self, to: Generation[Known], rows: Sequence[tuple[int, str, bytes]]) -> None:
        events = [self._mapper.decode(topic, state) for _, topic, state in rows]
        keys = {op.key for event in events if event.is_stored_changeset for op in event.ops}
        records = self._load(to, keys)
        conflicts: list[tuple[int, Conflict]] = []
        for event in events:
            conflicts += enumerate(fold(records, event))
        size = 0
        for columns in columns_of(records):
            size += sum(map(len, columns.values()))
            to.cursor.execute(UPSERT_RECORDS, {**to.names, **columns}, prepare=True)
        if conflicts:
            self._insert_conflicts(to, conflicts)
        self._insert_local_ids(to, events)
        to.known.note(records, size, events[-1].seq)

    def _load(self, to: Generation[Known], keys: set[Key]) -> dict[Key, Record]:
        records = to.known.find(keys)
        missing = keys - records.keys()
        if missing and not to.known.is_all:
            names = {
                "collections": text_array(collection for collection, _ in missing),
                "ids": text_array(id for _, id in missing),
            }
            rows = to.reader.execute(SELECT_RECORDS, {**to.names, **names}, prepare=True)
            records |= {(row[0], row[1]): record_of(row) for row in rows}
        return records

    def _insert_conflicts(
        self, to: Generation[Known], conflicts: list[tuple[int, Conflict]]
    ) -> None:
        names = {
            "seqs": bigint_array(conflict.seq for _, conflict in conflicts),
            "numbers": integer_array(number for number, _ in conflicts),
            "collections": text_array(conflict.collection for _, conflict in conflicts),
            "ids": text_array(conflict.id for _, conflict in conflicts),
            "documents": json_array(
                msgspec.json.encode(conflict_document(conflict)) for _, conflict in conflicts
            ),
        }
        to.cursor.execute(INSERT_CONFLICTS, {**to.names, **names}, prepare=True)

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
            to.cursor.execute(INSERT_LOCAL_IDS, {**to.names, **names}, prepare=True)
