"""Finds missing events in a log, and stores the alarm of such a log.

The seqs of a log are 1, 2, 3 ... up to its head. A restore that went wrong or a broken disk can
leave a hole: an event is missing, or the head differs from the seq of the last event. A reader that
meets a hole raises `SuspectedHole`. `LogAlarms` then looks again with new statements, and under the
lock of the space, so that a race or an old cache never raises an alarm. An alarm is a column of the
space's row. Each append checks this column, in each process, and the signer checks it too.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import structlog
from psycopg import Cursor

from foldlog.domain.errors import LogIncomplete, StorageUnavailable, UnknownSpace
from foldlog.domain.limits import INTEGER_MAX
from foldlog.infrastructure.postgres.connection.datastore import Datastore

log = structlog.get_logger("foldlog.alarms")

#: ranges of missing seqs that an alarm or a status names
RANGES_MAX = 20

# Each statement reads the head and the events in one snapshot. Appends therefore never look like a
# hole. The row after the last seq makes missing events at the end a gap, like all others.
SELECT_MISSING = """
SELECT before + 1, seq - 1
  FROM (
       SELECT seq,
              lag(seq, 1, %(after)s::bigint) OVER (ORDER BY seq) AS before
         FROM (
              SELECT originator_version AS seq
                FROM events
               WHERE originator_id = %(space)s
                 AND originator_version > %(after)s
                 AND originator_version <= %(through)s
               UNION ALL
              SELECT least(head, %(through)s) + 1
                FROM spaces
               WHERE space = %(space)s
              ) numbered
       ) pairs
 WHERE seq > before + 1
 ORDER BY seq
 LIMIT %(limit)s
"""

SELECT_END = """
SELECT head,
       coalesce((SELECT max(originator_version)
                   FROM events
                  WHERE originator_id = %(space)s), 0),
       alarm
  FROM spaces
 WHERE space = %(space)s
"""

COUNT_EVENTS = """
SELECT head,
       coalesce((SELECT max(originator_version)
                   FROM events
                  WHERE originator_id = %(space)s), 0),
       (SELECT count(*)
          FROM events
         WHERE originator_id = %(space)s
           AND originator_version > %(after)s
           AND originator_version <= %(through)s)
  FROM spaces
 WHERE space = %(space)s
"""

LOCK_FOR_ALARM = """
SELECT space
  FROM spaces
 WHERE space = %(space)s
   FOR UPDATE
"""

RAISE_ALARM = """
UPDATE spaces
   SET alarm = %(alarm)s,
       alarm_since = now()
 WHERE space = %(space)s
   AND alarm IS NULL
RETURNING space
"""

END_ALARM = """
UPDATE spaces
   SET alarm = NULL,
       alarm_since = NULL
 WHERE space = %(space)s
   AND alarm IS NOT NULL
RETURNING space
"""


class SuspectedHole(Exception):
    """The events with `after < seq <= through` seem incomplete, or the head of the log wrong."""

    def __init__(self, after: int, through: int):
        super().__init__(f"events after {after}, up to {through}")
        self.after = after
        self.through = through


class Holes(NamedTuple):
    """The missing seqs of a log, and its last seq if the head is wrong.

    `missing` contains the first and the last seq of each gap up to the head. `last` is the seq of
    the last event, which differs from `head` if the head is wrong. `is_known` tells whether the
    alarm of the space was raised before.
    """

    head: int
    last: int
    missing: list[tuple[int, int]]
    is_known: bool

    def __bool__(self) -> bool:
        return bool(self.missing) or self.last > self.head

    def __str__(self) -> str:
        parts = []
        if self.missing:
            named = ", ".join(
                str(first) if first == last else f"{first}-{last}" for first, last in self.missing
            )
            more = ", and more" if len(self.missing) == RANGES_MAX else ""
            parts.append(f"missing: seq {named}{more}")
        if self.last > self.head:
            parts.append(f"the head is {self.head}, but the log goes on to seq {self.last}")
        return "; ".join(parts)


def find_holes(
    cursor: Cursor[Any], space: str, *, after: int = 0, through: int = INTEGER_MAX
) -> Holes:
    """Returns the holes among the events with `after < seq <= through`, and at the head.

    `through` is at most the head of the log, or `INTEGER_MAX` for all events. The result names
    `RANGES_MAX` gaps at most. Raises `UnknownSpace` if the space is missing.
    """
    params = {"space": space, "after": after, "through": through, "limit": RANGES_MAX}
    found = cursor.execute(SELECT_END, params).fetchone()
    if found is None:
        raise UnknownSpace(space)
    head, last, alarm = found
    missing = cursor.execute(SELECT_MISSING, params).fetchall()
    return Holes(head, last, missing, alarm is not None)


def check_end(cursor: Cursor[Any], space: str) -> None:
    """Checks that the head of a log is the seq of its last event.

    Raises `SuspectedHole` if it is not, and `UnknownSpace` if the space is missing.
    """
    found = cursor.execute(SELECT_END, {"space": space}).fetchone()
    if found is None:
        raise UnknownSpace(space)
    head, last, _ = found
    if head != last:
        raise SuspectedHole(min(head, last), max(head, last))


def incomplete(space: str, holes: Holes | str) -> LogIncomplete:
    """Returns the error of a space whose log has holes."""
    return LogIncomplete(f"the log of {space!r} is incomplete: {holes}")


class LogAlarms:
    """Raises, shows and ends the alarms of logs with missing events."""

    def __init__(self, datastore: Datastore):
        self._datastore = datastore

    def confirm(self, space: str, hole: SuspectedHole) -> None:
        """Looks again whether events are missing, and stores the alarm if they are.

        Raises `LogIncomplete` if the hole is real. Returns if it is not: the first look was
        outdated. Raises `StorageUnavailable` if the database is unreachable, or if the space's lock
        is taken for too long. Raises `UnknownSpace` if the space is missing.
        """
        with self._datastore.reading() as cursor:
            holes = find_holes(cursor, space, after=hole.after, through=hole.through)
        if holes and (holes.is_known or self._raise(space, hole)):
            raise incomplete(space, holes)

    def _raise(self, space: str, hole: SuspectedHole) -> bool:
        """Stores the alarm of a space. Returns `False` if the hole is closed under the lock."""
        with self._datastore.writing() as cursor:
            # Under the lock, no append of the service is half done.
            cursor.execute(LOCK_FOR_ALARM, {"space": space})
            holes = find_holes(cursor, space, after=hole.after, through=hole.through)
            if not holes:
                return False
            params = {"space": space, "alarm": str(holes)}
            is_new = cursor.execute(RAISE_ALARM, params).fetchone() is not None
        if is_new:
            log.error("log_incomplete", space=space, why=str(holes))
        return True

    def confirm_or_retry(self, space: str, hole: SuspectedHole) -> NoReturn:
        """Raises `LogIncomplete` if the hole is real, and `StorageUnavailable` if it is not.

        For callers that cannot look again themselves.
        """
        self.confirm(space, hole)
        raise StorageUnavailable from hole

    def look(self, space: str, *, after: int, events: int) -> int | None:
        """Counts the events after the seq `after`, at most `events` of them.

        Returns the seq up to which the log is complete, or `None` if it ends there. If events are
        missing, the method stores the alarm and raises `LogIncomplete`.
        """
        through = after + events
        params = {"space": space, "after": after, "through": through}
        found = self._datastore.fetch_one(COUNT_EVENTS, params)
        if found is None:
            return None
        head, last, present = found
        if last != head or present < min(head, through) - after:
            self.confirm(space, SuspectedHole(min(after, head), through))
        return through if through < head else None

    def end(self, space: str) -> bool:
        """Ends the alarm of a space if no event is missing. Returns `True` if it ended one.

        Raises `LogIncomplete` if events are missing, and `UnknownSpace` if the space is missing.
        """
        with self._datastore.writing() as cursor:
            cursor.execute(LOCK_FOR_ALARM, {"space": space})
            holes = find_holes(cursor, space)
            if not holes:
                is_ended = cursor.execute(END_ALARM, {"space": space}).fetchone() is not None
        if holes:
            raise incomplete(space, holes)
        if is_ended:
            log.info("log_complete", space=space)
        return is_ended
