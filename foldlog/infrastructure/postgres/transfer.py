"""Bringing an exported log into an empty space: the same events, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from eventsourcing.persistence import IntegrityError
from msgspec import UNSET
from psycopg import Cursor

from ...domain.errors import OperatorError
from ...domain.events import LogEntry, decode_event
from .append import ADVANCE_SPACE, LOCK_SPACE, UPSERT_DEVICES, create_space
from .datastore import Datastore
from .errors import translated
from .recorder import LogRecorder

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
        self._recorder = LogRecorder(datastore)

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
            imported, expected = 0, 1
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
                    self._append(space, new)
                    imported += len(new)
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

    def _append(self, space: str, entries: list[LogEntry]) -> None:
        last = entries[-1]
        try:
            with self._datastore.committed() as cursor:
                row = cursor.execute(LOCK_SPACE, {"space": space}).fetchone()
                if row is None or row[1] != entries[0].seq - 1:
                    raise ImportConflict(f"somebody else writes to {space!r}")
                self._recorder.append(cursor, space, entries)
                cursor.execute(
                    ADVANCE_SPACE,
                    {
                        "space": space,
                        "head": last.seq,
                        "mark": last.mark,
                        "received_at": last.received_at,
                    },
                )
                self._keep_counters(cursor, space, entries)
        except IntegrityError as exc:
            raise InvalidExport(f"an id comes twice at or before seq {last.seq}") from exc

    def _keep_counters(self, cursor: Cursor[Any], space: str, entries: list[LogEntry]) -> None:
        counters: dict[str, int] = {}
        for entry in entries:
            counter = decode_event(entry.state).counter
            if entry.device is not None and counter is not UNSET:
                counters[entry.device] = counter
        cursor.execute(
            UPSERT_DEVICES,
            {
                "space": space,
                "received_at": entries[-1].received_at,
                "devices": list(counters),
                "counters": list(counters.values()),
            },
        )
