"""Gives the log of a space a new log id. This is called a fork.

An operator forks a log whose signed events are lost, for example after the restore of an old
backup. If events are missing, the fork also makes the log complete: the head becomes the seq of the
last event, and an event of the kind `event-lost` takes the place of each missing one. Devices then
find the last event that they share with the log, and send again the changesets that it lost.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from psycopg import Cursor

from foldlog.domain.events import Envelope, LogEntry
from foldlog.domain.lost_events import event_lost_entry
from foldlog.domain.proofs import SALT_BYTES

from .connection.datastore import Datastore
from .log.alarms import RANGES_MAX, find_holes
from .log.copy_rows import COPY, copy_rows
from .log.heads import absent
from .log.marks import mark_at
from .proofs.signers import END_ALARMS

BATCH_EVENTS = 1_000

LOCK_LOG = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
   AND NOT importing
   FOR UPDATE
"""

SELECT_TIME = """
SELECT coalesce(max(received_at_ms), 0)
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version = %(seq)s
"""

SET_NEW_LOG = """
UPDATE spaces
   SET log = gen_random_uuid(),
       head = %(head)s,
       mark = %(mark)s,
       received_at_ms = %(received_at_ms)s
 WHERE space = %(space)s
   AND NOT importing
RETURNING log::text
"""

# The signer's alarm is about the old log.
END_SIGNING_ALARM = f"""{END_ALARMS}
 WHERE space = %(space)s
RETURNING space
"""


class Forked(NamedTuple):
    """The result of a fork.

    `log` is the new id of the log, and `head` its head. `lost` is the number of missing events that
    an `event-lost` event replaces. If `needs_rebuild` is true, the projections contain events that
    the log has lost, and must be rebuilt.
    """

    log: str
    head: int
    lost: int
    needs_rebuild: bool


def fork_log(datastore: Datastore, space: str) -> Forked:
    """Gives the log of a space a new random id, and makes the log complete.

    If `needs_rebuild` is true in the result, the alarm of the space stays. The caller must then
    rebuild the projections, and end the alarm with `LogAlarms.end`. Raises `UnknownSpace` if the
    database has no such space.
    """
    with datastore.committed() as cursor:
        params: dict[str, Any] = {"space": space}
        found = cursor.execute(LOCK_LOG, params).fetchone()
        if found is None:
            raise absent(cursor, space)
        holes = find_holes(cursor, space)
        lost = _replace_missing(cursor, space, holes.last)
        params |= {"head": holes.last, "mark": mark_at(cursor.connection, space, holes.last)}
        [(received_at,)] = cursor.execute(
            SELECT_TIME, {"space": space, "seq": holes.last}
        ).fetchall()
        params["received_at_ms"] = received_at
        [(log,)] = cursor.execute(SET_NEW_LOG, params).fetchall()
        cursor.execute(END_SIGNING_ALARM, params)
    return Forked(log, holes.last, lost, bool(holes.missing))


def _replace_missing(cursor: Cursor[Any], space: str, last: int) -> int:
    """Inserts an `event-lost` event for each missing seq before the seq `last`.

    Returns the number of these events.
    """
    lost = 0
    while missing := find_holes(cursor, space, through=last).missing:
        missing = [(first, end) for first, end in missing if first < last]
        entries = _lost_events(cursor, space, missing)
        while batch := list(islice(entries, BATCH_EVENTS)):
            with cursor.copy(COPY) as copying:
                copying.write(copy_rows(space, batch))
            lost += len(batch)
        if len(missing) < RANGES_MAX:
            break
    return lost


def _lost_events(
    cursor: Cursor[Any], space: str, missing: list[tuple[int, int]]
) -> Iterator[LogEntry]:
    for first, end in missing:
        # Times never decrease in a log.
        params = {"space": space, "seq": first - 1}
        [(received_at,)] = cursor.execute(SELECT_TIME, params).fetchall()
        for seq in range(first, end + 1):
            envelope = Envelope(
                seq=seq,
                id=str(uuid.uuid4()),
                received_at=received_at,
                salt=secrets.token_bytes(SALT_BYTES),
            )
            yield event_lost_entry(envelope, "missing in the log at a fork")
