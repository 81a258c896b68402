"""Skips an event that cannot be applied to the master table.

The updates of the master table halt before such an event. To skip the event, this module appends an
`event-skipped` event, and the updates continue with the next event. Each append or import of an
`event-skipped` event also writes a row to the table `skipped` (see log/writer.py). All projections
then handle the skipped event as an event without operations.
"""

from __future__ import annotations

from foldlog.domain.errors import NotStopped
from foldlog.domain.names import check_reason
from foldlog.domain.ports import SpaceId
from foldlog.domain.skipping import Skipped, event_skipped_entry
from foldlog.infrastructure.postgres.append.service_event import OpenServiceEvent

# The projector locks these rows in the same way, so its position stays the same meanwhile.
LOCK_GENERATIONS = """
SELECT generation, position, is_live, stopped_at
  FROM projections
 WHERE space = %(space)s
   AND projection = 'master'
 ORDER BY generation
   FOR UPDATE
"""

RESUME = """
UPDATE projections
   SET stopped_at = NULL, stopped_why = NULL, stopped_until = NULL
 WHERE space = %(space)s
   AND projection = 'master'
   AND position = %(seq)s - 1
RETURNING generation
"""


class Skipper:
    """Skips an event that cannot be applied to the master table.

    The updates of the master table then continue with the next event.


    The parameter `append_service_event` is the method of the event store with the same name. It
    opens a transaction in which one event can be appended to a space.
    """

    def __init__(self, append_service_event: OpenServiceEvent):
        self._append_service_event = append_service_event

    def skip(self, space: SpaceId, seq: int, reason: str, by: str | None) -> Skipped:
        """Skips event `seq`, so that the updates of the master table continue after this event.

        Appends an `event-skipped` event, and returns a `Skipped` object with the seqs of both
        events.

        Raises `NotStopped` if the projection that updates the master table is running, or if it has
        halted before another event. Raises `NotStopped` too if a rebuild of the table has already
        applied this event; try again when the rebuild has ended.
        """
        check_reason(reason, by)
        with self._append_service_event(space) as transaction:
            # A projector may hold these locks for long. Pushes need only the lock of the space.
            rows = transaction.cursor.execute(LOCK_GENERATIONS, {"space": space}).fetchall()
            for _, position, is_live, stopped_at in rows:
                if is_live and (stopped_at, position) != (seq, seq - 1):
                    raise NotStopped(f"the master table of {space!r} is not halted at seq {seq}")
                if position >= seq:
                    # The new generation would keep the event that the live one lacks.
                    raise NotStopped(
                        f"a rebuild of {space!r} is past seq {seq}: try again when it has ended"
                    )
            transaction.lock()
            entry = event_skipped_entry(transaction.envelope, seq, reason=reason, by=by)
            transaction.append(entry)
            transaction.cursor.execute(RESUME, {"space": space, "seq": seq})
        return Skipped(seq, entry.seq)
