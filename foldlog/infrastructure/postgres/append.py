"""One append transaction: the waiting pushes of one space, decided under its lock.

Two round trips to the database: lock and look, then write and commit.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection, Cursor, Rollback
from psycopg.rows import tuple_row

from ...domain import proofs
from ...domain.changesets import Push
from ...domain.errors import (
    FoldlogError,
    OutcomeUnknown,
    StorageUnavailable,
)
from ...domain.events import LogEntry
from ...domain.intake import Intake, keys_to_load
from ...domain.limits import Limits
from ...domain.merge import FOLD_VERSION, Key, Record
from ...domain.ports import Receipt
from .datastore import Datastore
from .errors import DATABASE_ERRORS, is_connection_error, is_temporary
from .guards import records_at_head
from .marks import SELECT_FOR_MARKS, marks_of
from .recorder import LogRecorder

# The row lock is what makes seq order commit order: without FOR UPDATE two appends could take the
# same numbers, or commit in another order than their numbers, and a reader would miss events.
# tests/integration/test_nothing_is_skipped.py fails without it.
LOCK_SPACE = """
SELECT log::text, head, received_at_ms
  FROM spaces
 WHERE space = %(space)s
   FOR UPDATE
"""

# A statement of its own, and after the lock: the time must not be older than the wait.
SELECT_NOW = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

SELECT_KNOWN = """
SELECT event_id::text, state
  FROM events
 WHERE originator_id = %(space)s
   AND event_id = ANY(%(ids)s::uuid[])
 ORDER BY event_id
"""

SELECT_COUNTERS = """
SELECT device::text, counter
  FROM devices
 WHERE space = %(space)s
   AND device = ANY(%(devices)s::uuid[])
 ORDER BY device
"""

CREATE_SPACE = """
INSERT INTO spaces (space)
VALUES (%(space)s)
    ON CONFLICT (space) DO NOTHING
RETURNING space
"""

CREATE_PROJECTION = """
INSERT INTO projections (space, projection, generation, is_live, fold_version)
VALUES (%(space)s, %(projection)s, 1, true, %(fold_version)s)
RETURNING generation
"""

ADVANCE_SPACE = """
UPDATE spaces
   SET head = %(head)s, mark = %(mark)s, received_at_ms = %(received_at)s
 WHERE space = %(space)s
"""

UPSERT_DEVICES = """
INSERT INTO devices (space, device, counter, last_seen_ms)
SELECT %(space)s, device, counter, %(received_at)s
  FROM unnest(%(devices)s::uuid[], %(counters)s::bigint[]) AS seen (device, counter)
    ON CONFLICT (space, device) DO UPDATE
   SET counter = excluded.counter, last_seen_ms = excluded.last_seen_ms
RETURNING device
"""


class _Look(NamedTuple):
    """What the first round trip found."""

    log: str
    head: int
    received_at: int
    known: dict[str, bytes]
    counters: dict[str, int]
    marks: dict[int, str]
    is_new: bool  #: the space was made just now


def create_space(cursor: Cursor[Any], space: str) -> bool:
    """Makes a space with its projections; `False` if there is one already."""
    names = {"space": space, "projection": "master", "fold_version": FOLD_VERSION}
    if cursor.execute(CREATE_SPACE, names).fetchone() is None:
        return False
    cursor.execute(CREATE_PROJECTION, names)
    return True


class Appender:
    """Appends groups of pushes; the `commit` of a `GroupCommit`."""

    def __init__(self, datastore: Datastore, limits: Limits):
        self._datastore = datastore
        self._recorder = LogRecorder(datastore)
        self._limits = limits

    def append(self, space: str, pushes: Sequence[Push]) -> list[Receipt | Exception]:
        """An outcome for each push. Raises `StorageUnavailable` or `OutcomeUnknown` for all."""
        writing = False
        try:
            with (
                self._datastore.get_connection() as conn,
                conn.cursor(row_factory=tuple_row) as cursor,
                conn.pipeline(),
                conn.transaction(),
            ):
                look = self._look(conn, cursor, space, pushes)
                intake, outcomes = self._decide(cursor, space, pushes, look)
                if intake.entries:
                    writing = True
                    self._write(cursor, space, intake)
                elif look.is_new and all(isinstance(o, Exception) for o in outcomes):
                    raise Rollback  # a space that nothing was stored in is none
        except DATABASE_ERRORS as exc:
            if is_connection_error(exc):
                self._datastore.check_pool()
                # Once COMMIT may have been sent, a broken connection says nothing about it.
                raise (OutcomeUnknown() if writing else StorageUnavailable()) from exc
            if is_temporary(exc) and len(pushes) == 1:
                raise StorageUnavailable() from exc
            raise  # a group is tried one by one, see `PostgresEventStore`
        return outcomes

    def _look(
        self,
        conn: Connection[Any],
        cursor: Cursor[Any],
        space: str,
        pushes: Sequence[Push],
        is_new: bool = False,
    ) -> _Look:
        changesets = [changeset for push in pushes for changeset in push.changesets]
        names = {
            "space": space,
            "ids": list({changeset.id for changeset in changesets}),
            "devices": list({push.device for push in pushes}),
            "seqs": list({push.after for push in pushes if push.after}),
        }
        cursors = []
        # Sent one after another without waiting; each statement sees what is committed when it
        # runs, and so all but the first see what is true under the lock.
        for statement in (
            LOCK_SPACE,
            SELECT_NOW,
            SELECT_KNOWN,
            SELECT_COUNTERS,
            SELECT_FOR_MARKS,
        ):
            cursors.append(conn.cursor(row_factory=tuple_row))
            cursors[-1].execute(statement, names, prepare=True)
        locked, now, known, counters, marks = cursors
        row = locked.fetchone()
        if row is None:
            is_new = create_space(cursor, space)
            # Another may have made it, and appended, before we had the lock: look again.
            return self._look(conn, cursor, space, pushes, is_new)
        log, head, received_at = row
        (now_ms,) = now.fetchone() or (0,)
        return _Look(
            log,
            head,
            max(received_at, now_ms),
            dict(known.fetchall()),
            dict(counters.fetchall()),
            marks_of(marks.fetchall()),
            is_new,
        )

    def _decide(
        self, cursor: Cursor[Any], space: str, pushes: Sequence[Push], look: _Look
    ) -> tuple[Intake, list[Receipt | Exception]]:
        keys = keys_to_load(pushes)
        records: dict[Key, Record] | None = {}
        if keys:
            records = records_at_head(cursor, space, look.head, keys, self._limits)
        intake = Intake(
            log=look.log,
            head=look.head,
            received_at=look.received_at,
            known=look.known,
            counters=look.counters,
            marks=look.marks,
            records=records,
            salt=lambda: secrets.token_bytes(proofs.SALT_BYTES),
            limits=self._limits,
        )
        outcomes: list[Receipt | Exception] = []
        for push in pushes:
            try:
                outcomes.append(Receipt(look.log, 0, intake.take(push)))
            except FoldlogError as exc:
                outcomes.append(exc)
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                outcome.head = intake.head
        return intake, outcomes

    def _write(self, cursor: Cursor[Any], space: str, intake: Intake) -> None:
        last: LogEntry = intake.entries[-1]
        assert [e.seq for e in intake.entries] == list(
            range(last.seq - len(intake.entries) + 1, last.seq + 1)
        )
        self._recorder.append(cursor, space, intake.entries)
        values = {"space": space, "received_at": last.received_at}
        cursor.execute(ADVANCE_SPACE, {**values, "head": last.seq, "mark": last.mark}, prepare=True)
        cursor.execute(
            UPSERT_DEVICES,
            {
                **values,
                "devices": list(intake.counters),
                "counters": list(intake.counters.values()),
            },
            prepare=True,
        )
