"""Bringing an exported log into an empty space: the same events, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from eventsourcing.persistence import IntegrityError
from msgspec import UNSET

from foldlog.domain.errors import OperatorError
from foldlog.domain.events import LogEntry, decode_event
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated
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
    """The space holds another log than the one to import."""

    code = "import-conflict"


class InvalidExport(OperatorError):
    """The file is not an export, or not a whole one."""

    code = "invalid-export"


class Importer:
    """Imports one log. An import that was interrupted goes on where it stopped."""

    def __init__(self, datastore: Datastore):
        self._datastore = datastore

    def run(
        self,
        space: str,
        log: str,
        entries: Iterable[LogEntry],
        report: Callable[[int], None] = lambda seq: None,
    ) -> int:
        """Appends the entries that the space lacks, and returns how many those were.

        `report(seq)` is called after each batch. Raises `ImportConflict`, or `InvalidExport` if
        the entries are not 1, 2, 3 ... without a hole.
        """
        with translated(self._datastore):
            done = self._start(space, log)
            imported, expected, mark = 0, 1, done[1]
            iterator = iter(entries)
            while batch := list(islice(iterator, BATCH_EVENTS)):
                for entry in batch:
                    if entry.seq != expected:
                        raise InvalidExport(f"after seq {expected - 1} comes {entry.seq}")
                    expected += 1
                    if entry.seq == done[0] and entry.mark != done[1]:
                        raise ImportConflict(f"seq {entry.seq} of {space!r} is another event")
                new = [entry for entry in batch if entry.seq > done[0]]
                if new:
                    self._append(space, log, mark, new)
                    imported += len(new)
                    mark = new[-1].mark
                report(batch[-1].seq)
            if expected <= done[0]:
                raise ImportConflict(f"{space!r} has {done[0]} events, the export {expected - 1}")
            return imported

    def _start(self, space: str, log: str) -> tuple[int, str]:
        """Makes the space, or finds it part of the way; returns its head and mark."""
        names = {"space": space, "log": log}
        with self._datastore.committed() as cursor:
            create_space(cursor, space)
            cursor.execute(SET_LOG, names)  # if it is empty: a device's first sync may have made it
            found = cursor.execute(SELECT_MARK, names).fetchone()
        if found is None:
            raise ImportConflict(f"the space {space!r} exists and holds another log")
        return found

    def _append(self, space: str, log: str, mark: str, entries: list[LogEntry]) -> None:
        try:
            # One transaction: what pushes are decided by comes with the events that say it.
            with self._datastore.get_connection() as conn, conn.transaction():
                batch = LogBatch(space, log, mark, entries, _counters_of(entries))
                done = append_batch(conn, batch)
                if done:
                    write_definitions(conn.cursor(), space, entries)
        except IntegrityError:
            done = False
        if not done:
            with self._datastore.rows() as cursor:
                names = {"space": space, "log": log}
                found = cursor.execute(SELECT_MARK, names).fetchone()
            if found is None or found[0] != entries[0].seq - 1:
                raise ImportConflict(f"somebody else writes to {space!r}")
            raise InvalidExport(f"an id comes twice at or before seq {entries[-1].seq}")


def _counters_of(entries: list[LogEntry]) -> dict[str, int]:
    counters: dict[str, int] = {}
    for entry in entries:
        counter = decode_event(entry.state).counter
        if entry.device is not None and counter is not UNSET:
            counters[entry.device] = counter
    return counters
