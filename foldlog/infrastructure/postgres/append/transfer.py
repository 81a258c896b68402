"""Imports an exported log into a new space. Imported events keep exactly the same bytes.

A space is marked `importing` by the INSERT that creates it, and hidden until the mark is cleared.
Every other statement leaves the space out, and the space has no projections yet. The caller
verifies the events while it adds them, and clears the mark when all of them are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import psycopg
from eventsourcing.persistence import IntegrityError
from msgspec import UNSET
from psycopg import Cursor

from foldlog.domain.errors import OperatorError
from foldlog.domain.events import LogEntry, decode_event
from foldlog.infrastructure.postgres.connection.arrays import uuid_array
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch

from .schemas import write_definitions
from .spaces import create_projections

BATCH_EVENTS = 500

# The condition keeps the statement away from the trigger, which runs before ON CONFLICT.
CREATE_IMPORTING = """
INSERT INTO spaces (space, log, importing)
SELECT %(space)s, %(log)s, true
 WHERE NOT EXISTS (SELECT FROM spaces WHERE space = %(space)s)
    ON CONFLICT (space) DO NOTHING
"""

SELECT_PLACE = """
SELECT log::text, head, mark, importing
  FROM spaces
 WHERE space = %(space)s
"""

# A device may have synced before the import, and created an empty space.
TAKE_EMPTY = """
UPDATE spaces
   SET log = %(log)s
 WHERE space = %(space)s
   AND head = 0
   AND NOT importing
RETURNING log::text, head, mark, false
"""

LOCK_IMPORTING = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
   AND log = %(log)s
   AND importing
   FOR UPDATE
"""

SELECT_STORED = """
SELECT state, salt
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version BETWEEN %(first)s AND %(last)s
 ORDER BY originator_version
"""

SELECT_COUNTERS = """
SELECT device::text, counter
  FROM devices
 WHERE space = %(space)s
   AND device = ANY(%(devices)s::uuid[])
 ORDER BY device
"""

CLEAR_MARK = """
UPDATE spaces
   SET importing = false
 WHERE space = %(space)s
   AND log = %(log)s
   AND head = %(head)s
   AND importing
RETURNING space
"""

REMOVE = "SELECT remove_import(%(space)s, %(why)s)"


class ImportConflict(OperatorError):
    """The import cannot continue, because the space contains other events than the export.

    This happens if the space belongs to another log, or if another process writes to it during the
    import.
    """

    code = "import-conflict"


class InvalidExport(OperatorError):
    """The file to import is incomplete, or its content is invalid."""

    code = "invalid-export"


class NotImporting(OperatorError):
    """The space is missing, or is whole: only an unfinished import can be removed."""

    code = "not-importing"


class _Place(NamedTuple):
    """How far a space is: its log, head and mark, and whether it is being imported."""

    log: str
    head: int
    mark: str
    importing: bool


#: Opens the transaction of one batch.
OpenTransaction = Callable[[], AbstractContextManager[Cursor[Any]]]


class ImportedSpace:
    """A space that is being imported. Add all events in order, in batches, and then call `finish`.

    Events that the space has already are compared with the added ones.
    """

    def __init__(self, space: str, place: _Place, transaction: OpenTransaction, *, is_whole: bool):
        self.seq = 0  #: of the last added event
        self.stored = 0  #: the number of events that were appended
        self._space = space
        self._place = place
        self._mark = place.mark
        self._transaction = transaction
        self._is_whole = is_whole  #: the space is served already, so it is only compared

    def add(self, entries: Sequence[LogEntry]) -> None:
        """Appends those of the next events that the space lacks, in one transaction.

        Raises `ImportConflict` if the space contains other events, or if another process has
        changed it. Raises `InvalidExport` if the seqs of all added events are not 1, 2, 3 and so
        on, if two events have the same id, or if a counter of a device does not grow by one.
        """
        for entry in entries:
            if entry.seq != self.seq + 1:
                raise InvalidExport(f"after seq {self.seq} comes {entry.seq}")
            self.seq = entry.seq
        known = [entry for entry in entries if entry.seq <= self._place.head]
        if known:
            self._compare(known)
        if new := entries[len(known) :]:
            if self._is_whole:
                raise ImportConflict(f"{self._space!r} is whole and ends at {self._place.head}")
            self._append(new)

    def finish(self) -> None:
        """Makes the space visible, and starts its projections. Call this method after all events
        were verified.

        Raises `ImportConflict` if the space has more events than were added, or if another process
        has changed or removed it.
        """
        if self.seq < self._place.head:
            raise ImportConflict(
                f"{self._space!r} has {self._place.head} events, the export {self.seq}"
            )
        if not self._place.importing:
            return
        params = {"space": self._space, "log": self._place.log, "head": self.seq}
        with self._transaction() as cursor:
            if cursor.execute(CLEAR_MARK, params).fetchone() is None:
                raise self._changed()
            create_projections(cursor, self._space)

    def _compare(self, entries: Sequence[LogEntry]) -> None:
        last = entries[-1]
        if last.seq == self._place.head and last.mark != self._place.mark:
            raise ImportConflict(f"seq {last.seq} of {self._space!r} is another event")
        if self._is_whole:  # its values may be erased since
            return
        params = {"space": self._space, "first": entries[0].seq, "last": last.seq}
        with self._transaction() as cursor:
            stored = cursor.execute(SELECT_STORED, params, binary=True).fetchall()
        if stored != [(entry.state, entry.salt) for entry in entries]:
            raise ImportConflict(
                f"{self._space!r} holds other events of an earlier import near seq {last.seq}: "
                f"run foldlog remove-import {self._space} first"
            )

    def _append(self, entries: Sequence[LogEntry]) -> None:
        """Appends events. The definitions of collections are written with them."""
        space, log = self._space, self._place.log
        params = {"space": space, "log": log}
        try:
            with self._transaction() as cursor:
                if (
                    self._place.importing
                    and cursor.execute(LOCK_IMPORTING, params).fetchone() is None
                ):
                    raise self._changed()
                counters = _counters(cursor, space, entries)
                batch = LogBatch(space, log, self._mark, entries, counters)
                if not append_batch(cursor.connection, batch):
                    place = _place(cursor, space)
                    if place is None or place.head != entries[0].seq - 1:
                        raise self._changed()
                    raise InvalidExport(f"an id comes twice at or before seq {entries[-1].seq}")
                write_definitions(cursor, space, entries)
        except (IntegrityError, psycopg.IntegrityError) as exc:
            raise InvalidExport(f"an id comes twice at or before seq {entries[-1].seq}") from exc
        self._mark = entries[-1].mark
        self.stored += len(entries)

    def _changed(self) -> ImportConflict:
        return ImportConflict(f"another process has changed or removed {self._space!r}")


class Importer:
    """Imports exported logs into spaces.

    If an import is interrupted, run it again: the space stays hidden, and the import continues
    after its last complete batch.
    """

    def __init__(self, datastore: Datastore):
        self._datastore = datastore

    @contextmanager
    def into(self, space: str, log: str) -> Iterator[ImportedSpace]:
        """Creates a space for the log with this id, or finds the space of an interrupted import.
        The block gets an `ImportedSpace`.

        A space without events that a device has just created is filled in one transaction. If the
        block raises `InvalidExport`, the import is removed, because the file is wrong. Any other
        error leaves the hidden space for the next run.

        Raises `ImportConflict` if the space contains events of another log.
        """
        params = {"space": space, "log": log}
        with self._datastore.writing() as cursor:
            cursor.execute(CREATE_IMPORTING, params)
            place = _place(cursor, space)
        if place is not None and place.head == 0 and not place.importing:
            with self._datastore.writing() as cursor:
                taken = cursor.execute(TAKE_EMPTY, params).fetchone()
                if taken is not None:
                    place = _Place(*taken)
                    yield ImportedSpace(space, place, lambda: nullcontext(cursor), is_whole=False)
                    return
        if place is None or place.log != log:
            raise ImportConflict(f"the space {space!r} exists and holds another log")
        try:
            yield ImportedSpace(space, place, self._datastore.writing, is_whole=not place.importing)
        except InvalidExport as exc:
            if place.importing:
                self._remove(space, f"refused: {exc}")
            raise

    def run(
        self,
        space: str,
        log: str,
        entries: Iterable[LogEntry],
        report: Callable[[int], None] = lambda seq: None,
    ) -> int:
        """Imports entries that were verified before, and returns the number of appended events.

        After each batch it calls `report(seq)` with the seq of the last event of the batch. Raises
        the errors of `into`, `ImportedSpace.add` and `ImportedSpace.finish`.
        """
        iterator = iter(entries)
        with self.into(space, log) as imported:
            while batch := list(islice(iterator, BATCH_EVENTS)):
                imported.add(batch)
                report(imported.seq)
            imported.finish()
        return imported.stored

    def remove(self, space: str, why: str) -> int:
        """Removes an unfinished import with all of its events, and returns the number of the
        events. The table `removed_imports` keeps a line about it.

        Raises `NotImporting` if the space is missing or whole.
        """
        removed = self._remove(space, why)
        if removed is None:
            raise NotImporting(f"{space!r} is not being imported: it is missing, or it is whole")
        return removed

    def _remove(self, space: str, why: str) -> int | None:
        with self._datastore.writing() as cursor:
            row = cursor.execute(REMOVE, {"space": space, "why": why}).fetchone()
        return None if row is None else row[0]


def _place(cursor: Cursor[Any], space: str) -> _Place | None:
    row = cursor.execute(SELECT_PLACE, {"space": space}).fetchone()
    return None if row is None else _Place(*row)


def _counters(cursor: Cursor[Any], space: str, entries: Sequence[LogEntry]) -> dict[str, int]:
    """Returns a dict from each device in these entries to the counter of its last changeset.

    Raises `InvalidExport` if a counter is not the one after the device's last. With such a counter
    the service would take the next changesets of the device for lost or repeated ones.
    """
    devices = {entry.device for entry in entries if entry.device is not None}
    params = {"space": space, "devices": uuid_array(devices)}
    last: dict[str, int] = dict(cursor.execute(SELECT_COUNTERS, params).fetchall())
    counters: dict[str, int] = {}
    for entry in entries:
        counter = decode_event(entry.state).counter
        if entry.device is not None and counter is not UNSET:
            before = counters.get(entry.device, last.get(entry.device, 0))
            if counter != before + 1:
                raise InvalidExport(
                    f"seq {entry.seq} has the counter {counter} of its device, after {before}"
                )
            counters[entry.device] = counter
    return counters
