"""Following the logs: any number of workers share the spaces between them.

A space that cannot go on stops alone, says so in its row of `projections`, and is tried again
after a while; neither the other spaces nor appends notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog
from psycopg import Cursor

from ...domain.events import Event
from ...domain.limits import INTEGER_MAX
from ...domain.merge import FOLD_VERSION
from .datastore import Datastore
from .errors import DATABASE_ERRORS, is_connection_error
from .master import MasterProjection
from .positions import PositionRecorder
from .recorder import EventMapper
from .wakeups import Wakeups

log = structlog.get_logger("foldlog.projector")

BATCH_EVENTS = 1_000
BATCH_BYTES = 8 * 2**20
#: how long a space that stopped rests before it is tried again
RETRY_SECONDS = 30
#: so often in a row a space may fail before it is not the database's trouble any more
BREAKS_MAX = 3
#: a lost notification costs this at most
POLL_SECONDS = 2.0
RECONNECT_SECONDS = 1.0
SPACES_PER_ROUND = 1_000

SELECT_BATCH = """
SELECT originator_version, topic, state
  FROM (
       SELECT originator_version,
              topic,
              state,
              sum(octet_length(state)) OVER (
                  ORDER BY originator_version ROWS UNBOUNDED PRECEDING
              ) - octet_length(state) AS bytes_before
         FROM events
        WHERE originator_id = %(space)s
          AND originator_version > %(position)s
          AND originator_version <= %(to)s
        ORDER BY originator_version
        LIMIT %(limit)s
       ) batch
 WHERE bytes_before <= %(bytes_max)s
 ORDER BY originator_version
"""

# The one statement that looks at all spaces; on shards, one of them at a time.
SELECT_LAGGING = """
SELECT s.space
  FROM spaces s
  JOIN projections p
    ON p.space = s.space
 WHERE p.projection = %(projection)s
   AND p.is_live
   AND p.position < s.head
   AND p.fold_version = %(fold_version)s
   AND (p.stopped_until IS NULL OR p.stopped_until < now())
 ORDER BY s.space
 LIMIT %(limit)s
"""

NOTE_STOPPED = """
UPDATE projections
   SET stopped_at = %(seq)s,
       stopped_why = %(why)s,
       stopped_until = now() + %(seconds)s * interval '1 second'
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND position = %(seq)s - 1  -- else another worker has got past it meanwhile
RETURNING generation
"""


NOTE_FAILED = """
UPDATE projections
   SET stopped_at = position + 1,
       stopped_why = %(why)s,
       stopped_until = now() + %(seconds)s * interval '1 second'
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND is_live
RETURNING generation
"""


class Stopped(Exception):
    """An event that a projection cannot process."""

    def __init__(self, generation: int, seq: int, why: str):
        super().__init__(f"seq {seq}: {why}")
        self.generation = generation
        self.seq = seq
        self.why = why


class Projector:
    """Brings projections of spaces up to their logs, batch by batch."""

    def __init__(
        self,
        datastore: Datastore,
        projection: MasterProjection,
        *,
        batch_events: int = BATCH_EVENTS,
    ):
        self._datastore = datastore
        self._projection = projection
        self._batch_events = batch_events
        self._mapper = EventMapper()
        self._breaks: Counter[str] = Counter()  #: of each space, how often in a row it has failed
        self.positions = PositionRecorder(datastore, projection.name)

    def run(self, wakeups: Wakeups) -> None:
        """Follows all spaces until `wakeups` is closed."""
        waiting: set[str] = set()
        while not wakeups.closed:
            try:
                if not waiting:
                    waiting = set(self.lagging())
                for space in sorted(waiting):
                    if wakeups.closed:
                        return
                    # A batch of each space in turn: a long log does not hold up the others.
                    if not self._project_or_note(space):
                        waiting.discard(space)
            except DATABASE_ERRORS as exc:
                # Also what is no fault of the connection must not end the worker.
                log.warning("projector_waits_for_the_database", error=str(exc))
                self._datastore.check_pool()
                waiting.clear()
                wakeups.sleep(RECONNECT_SECONDS)
                continue
            waiting.update(wakeups.wait(0 if waiting else POLL_SECONDS))

    def _project_or_note(self, space: str) -> bool:
        """Whatever happens with one space, the next one has its turn: if there is a database.

        Raises what the database raised, as long as it may be the database's trouble alone.
        """
        try:
            more = self.project_or_stop(space)
        except DATABASE_ERRORS as exc:
            self._breaks[space] += 1
            if self._breaks[space] < BREAKS_MAX:
                raise
            self._datastore.check_pool()
            # Raises if the database is gone. If it is not, something about this space is too much
            # for it: a batch that breaks the connection each time, say.
            with self._datastore.committed() as cursor:
                names = {"space": space, "projection": self._projection.name}
                why = f"{type(exc).__name__}: {exc}"
                cursor.execute(NOTE_FAILED, {**names, "why": why, "seconds": RETRY_SECONDS})
            log.error("projection_failed", space=space, why=why)
            more = False
        del self._breaks[space]
        return more

    def lagging(self) -> list[str]:
        names = {
            "projection": self._projection.name,
            "fold_version": FOLD_VERSION,
            "limit": SPACES_PER_ROUND,
        }
        with self._datastore.rows() as cursor:
            return [space for (space,) in cursor.execute(SELECT_LAGGING, names).fetchall()]

    def project_or_stop(self, space: str) -> bool:
        """Projects a batch of the live generation; notes where a space stops.

        Returns whether there may be more to do at once.
        """
        try:
            return self.project(space)
        except Stopped as exc:
            log.error("projection_stopped", space=space, seq=exc.seq, why=exc.why)
            with self._datastore.committed() as cursor:
                cursor.execute(
                    NOTE_STOPPED,
                    {
                        "space": space,
                        "projection": self._projection.name,
                        "generation": exc.generation,
                        "seq": exc.seq,
                        "why": exc.why,
                        "seconds": RETRY_SECONDS,
                    },
                )
            return False

    def project(self, space: str) -> bool:
        """Projects a batch of the live generation, if no other worker is at it."""
        with self._datastore.committed() as cursor:
            locked = self.positions.lock_live(cursor, space)
            if locked is None:
                return False
            generation, position = locked
            return self.advance(cursor, space, generation, position) > position

    def advance(
        self,
        cursor: Cursor[Any],
        space: str,
        generation: int,
        position: int,
        to: int = INTEGER_MAX,
    ) -> int:
        """Applies the events after `position`, up to one batch and up to `to`, to a generation.

        The generation must be locked. Returns the new position. Raises `Stopped` if already the
        first event cannot be processed.
        """
        rows = self._read(cursor, space, position, to)
        if not rows:
            return position
        try:
            return self._apply(cursor, space, generation, position, rows)
        except Exception as whole:
            if is_connection_error(whole):
                raise
            # Which one was it? Go on event by event, so that all before it are projected.
            for done, row in enumerate(rows):
                try:
                    position = self._apply(cursor, space, generation, position, [row])
                except Exception as exc:
                    if is_connection_error(exc):
                        raise
                    if done == 0:
                        raise Stopped(generation, row[0], f"{type(exc).__name__}: {exc}") from exc
                    return position
            log.warning("batch_failed_but_not_its_events", space=space, error=str(whole))
            return position

    def _read(
        self, cursor: Cursor[Any], space: str, position: int, to: int
    ) -> list[tuple[int, str, bytes]]:
        names = {
            "space": space,
            "position": position,
            "to": to,
            "limit": self._batch_events,
            "bytes_max": BATCH_BYTES,
        }
        return cursor.execute(SELECT_BATCH, names, prepare=True, binary=True).fetchall()

    def _apply(
        self,
        cursor: Cursor[Any],
        space: str,
        generation: int,
        position: int,
        rows: Sequence[tuple[int, str, bytes]],
    ) -> int:
        last = rows[-1][0]
        assert rows[0][0] == position + 1 and last == position + len(rows), "a hole in the log"
        with cursor.connection.transaction():  # a savepoint: what fails leaves nothing behind
            self._projection.apply(cursor, space, generation, self._decode(rows))
            self.positions.advance(cursor, space, generation, expected=position, to=last)
        return last

    def _decode(self, rows: Sequence[tuple[int, str, bytes]]) -> list[Event]:
        return [self._mapper.decode(topic, state) for _, topic, state in rows]
