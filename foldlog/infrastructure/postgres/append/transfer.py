"""Imports an exported log into an empty space. Imported events keep exactly the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from eventsourcing.persistence import IntegrityError
from msgspec import UNSET

from foldlog.domain.errors import OperatorError
from foldlog.domain.events import LogEntry, decode_event
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch

from .schemas import write_definitions
from .spaces import create_space

BATCH_EVENTS = 500

SET_LOG = """
UPDATE spaces
   SET log = %(log)s
 WHERE space = %(space)s
   AND head = 0
RETURNING log
"""

SELECT_MARK = """
SELECT head, mark
  FROM spaces
 WHERE space = %(space)s
   AND log = %(log)s
"""


class ImportConflict(OperatorError):
    """The import cannot continue, because the space contains other events than the export.

    This happens if the space belongs to another log, or if another process writes to it during the
    import.
    """

    code = "import-conflict"


class InvalidExport(OperatorError):
    """The file to import is incomplete, or its content is invalid."""

    code = "invalid-export"


class Importer:
    """Imports an exported log into a space, in batches of events.

    If an import is interrupted, run it again: it continues after the last complete batch.
    """

    def __init__(self, datastore: Datastore):
        self._datastore = datastore

    def run(
        self,
        space: str,
        log: str,
        entries: Iterable[LogEntry],
        report: Callable[[int], None] = lambda seq: None,
    ) -> int:
        """Appends those entries of the export that the space lacks, and returns their number.

        After each batch it calls `report(seq)` with the seq of the last event of the batch.

        Raises `ImportConflict` if the space contains other events than the export, or if another
        process writes to the space. Raises `InvalidExport` if the seqs of the entries are not 1, 2,
        3 and so on, or if two entries have the same id.
        """
        head, mark = self._start(space, log)
        imported, expected, mark_before = 0, 1, mark
        iterator = iter(entries)
        while batch := list(islice(iterator, BATCH_EVENTS)):
            for entry in batch:
                if entry.seq != expected:
                    raise InvalidExport(f"after seq {expected - 1} comes {entry.seq}")
                expected += 1
                if entry.seq == head and entry.mark != mark:
                    raise ImportConflict(f"seq {entry.seq} of {space!r} is another event")
            new = [entry for entry in batch if entry.seq > head]
            if new:
                self._append(space, log, mark_before, new)
                imported += len(new)
                mark_before = new[-1].mark
            report(batch[-1].seq)
        if expected <= head:
            raise ImportConflict(f"{space!r} has {head} events, the export {expected - 1}")
        return imported

    def _start(self, space: str, log: str) -> tuple[int, str]:
        """Prepares the space for the import, and returns a pair: its head and the mark of its head.

        A missing space is created. An empty space gets the log id of the export. Raises
        `ImportConflict` if the space already contains events of a log with another id.
        """
        params = {"space": space, "log": log}
        with self._datastore.writing() as cursor:
            create_space(cursor, space)
            cursor.execute(SET_LOG, params)  # a device's first sync may have created an empty space
            found = cursor.execute(SELECT_MARK, params).fetchone()
        if found is None:
            raise ImportConflict(f"the space {space!r} exists and holds another log")
        return found

    def _append(self, space: str, log: str, mark: str, entries: list[LogEntry]) -> None:
        try:
            # The definitions must be there as soon as their events are.
            with self._datastore.writing() as cursor:
                batch = LogBatch(space, log, mark, entries, _counters_of(entries))
                is_appended = append_batch(cursor.connection, batch)
                if is_appended:
                    write_definitions(cursor, space, entries)
        except IntegrityError:
            is_appended = False
        if not is_appended:
            found = self._datastore.fetch_one(SELECT_MARK, {"space": space, "log": log})
            if found is None or found[0] != entries[0].seq - 1:
                raise ImportConflict(f"another process writes to {space!r}")
            raise InvalidExport(f"an id comes twice at or before seq {entries[-1].seq}")


def _counters_of(entries: list[LogEntry]) -> dict[str, int]:
    """Returns a dict from each device in these entries to the counter of its last changeset."""
    counters: dict[str, int] = {}
    for entry in entries:
        counter = decode_event(entry.state).counter
        if entry.device is not None and counter is not UNSET:
            counters[entry.device] = counter
    return counters
