"""Following the logs: any number of workers share the spaces between them.

A space that cannot go on stops alone, says so in its row of `projections`, and is tried again
after a while; neither the other spaces nor appends notice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import structlog

from foldlog.domain.limits import INTEGER_MAX
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS, is_connection_error
from foldlog.infrastructure.postgres.log.pages import select_page
from foldlog.infrastructure.postgres.log.wakeups import Wakeups
from foldlog.infrastructure.postgres.projection import Generation, Memory, Projection

from .positions import PositionRecorder

log = structlog.get_logger("foldlog.projector")

#: so many events are folded and written together ...
BATCH_EVENTS = 1_000
BATCH_BYTES = 8 * 2**20
#: ... and so many in one transaction of the live generation: others wait for theirs
TURN_EVENTS = 4_000
#: a transaction that has written so much ends, for what it wrote is kept in memory until then; and
#: one that has taken so long, whatever makes it slow
WRITTEN_BYTES = 64 * 2**20
TURN_SECONDS = 2.0
#: between the turns of a space the records are kept that the last one touched, within these bounds
KNOWN_BYTES = 16 * 2**20
KNOWN_SPACES = 4
#: how long a space that stopped rests before it is tried again
RETRY_SECONDS = 30
#: so often a space may fail before it is not the database's trouble any more ...
BREAKS_MAX = 4
#: ... and each time its turns have so many times fewer events: the last ones, a single event
FEWER = 16
#: a lost notification costs this at most
POLL_SECONDS = 2.0
RECONNECT_SECONDS = 1.0
SPACES_PER_ROUND = 1_000

# The one statement that looks at all spaces; on shards, one of them at a time.
SELECT_LAGGING = """
SELECT s.space
  FROM spaces s
  JOIN projections p
    ON p.space = s.space
 WHERE p.projection = %(projection)s
   AND p.is_live
   AND s.space > %(after)s
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


class Stopped(Exception):
    """An event that a projection cannot process."""

    def __init__(self, generation: int, seq: int, why: str):
        super().__init__(f"seq {seq}: {why}")
        self.generation = generation
        self.seq = seq
        self.why = why


class _Turn(NamedTuple):
    generation: int
    first: int
    last: int  #: the seq that it is to come to


class Projector:
    """Brings projections of spaces up to their logs, batch by batch."""

    def __init__(
        self,
        datastore: Datastore,
        projection: Projection[Any],
        *,
        turn_events: int = TURN_EVENTS,
    ):
        self._datastore = datastore
        self._projection = projection
        self._turn_events = turn_events
        self._select_batch = select_page(f"originator_version, {projection.columns}")
        #: of a space that fails, how often it has, and what the turn that did so last was
        self._breaks: Counter[str] = Counter()
        self._failed: dict[str, _Turn] = {}
        self._turn: _Turn | None = None  #: the last one that was begun
        self._read_to = 0  #: the last seq that was read, or is to be
        #: generation, and its records that the next turn need not read, of spaces far behind
        self._known: dict[str, tuple[int, Memory]] = {}
        self.positions = PositionRecorder(datastore, projection.name, projection.version)
        self._waiting: set[str] = set()
        self._looked_through = ""  #: which spaces, as there may be more than are looked up at once
        #: not before this is there a turn, and then all that lags is looked up
        self._resting_until = self._looking_at = 0.0

    def run(self, wakeups: Wakeups) -> None:
        """Follows all spaces until `wakeups` is closed."""
        follow([self], wakeups)

    def wake(self, spaces: Iterable[str]) -> None:
        """These have grown."""
        self._waiting.update(spaces)

    def take_turns(self, wakeups: Wakeups) -> None:
        """A turn of each space that waits for one, unless it rests. Raises `DATABASE_ERRORS`."""
        now = time.monotonic()
        if now < self._resting_until:
            return
        if now >= self._looking_at:
            self._waiting.update(self.lagging())
            self._looking_at = now + POLL_SECONDS
        # A turn of each space: a long log does not hold up the others. Who has failed comes last:
        # what fails once more, and perhaps slowly, ends the round.
        for space in sorted(self._waiting, key=lambda space: (self._breaks[space], space)):
            if wakeups.closed:
                return
            if not self._project_or_note(space):
                self._waiting.discard(space)
        if not self._waiting:
            self._resting_until = time.monotonic() + self._projection.pause_seconds

    def due_in(self) -> float:
        """Seconds until there is something to do, as far as is known."""
        due = self._resting_until if self._waiting else self._looking_at
        return max(0.0, due - time.monotonic())

    def start_over(self) -> None:
        """After trouble with the database: what waits is looked up anew."""
        self._datastore.check_pool()
        self._waiting.clear()
        self._looking_at = 0.0

    def _project_or_note(self, space: str) -> bool:
        """Whatever happens with one space, the next one has its turn: if there is a database.

        Raises what the database raised, as long as it may be the database's trouble alone.
        """
        self._turn = None
        try:
            return self.project_or_stop(space)
        except DATABASE_ERRORS as exc:
            if self._turn is None:
                raise
            self._failed[space] = failed = self._turn
            self._breaks[space] += 1
            if self._breaks[space] < BREAKS_MAX:
                raise
            # A turn of one event, as the next one will be.
            self._breaks[space] = BREAKS_MAX - 1
            self._datastore.check_pool()
            # Raises if the database is gone. If it is not, something about this event is too much
            # for it: it breaks the connection each time, say.
            why = f"{type(exc).__name__}: {exc}"
            self._note(space, Stopped(failed.generation, failed.first, why))
            return False

    def lagging(self) -> list[str]:
        names = {
            "projection": self._projection.name,
            "fold_version": self._projection.version,
            "after": self._looked_through,
            "limit": SPACES_PER_ROUND,
        }
        with self._datastore.rows() as cursor:
            found = [space for (space,) in cursor.execute(SELECT_LAGGING, names).fetchall()]
        # Else the first ones, if they always lag, would keep the others from being found.
        self._looked_through = found[-1] if len(found) == SPACES_PER_ROUND else ""
        return found

    def project_or_stop(self, space: str) -> bool:
        """Projects a turn of the live generation; notes where a space stops.

        Returns whether there may be more to do at once.
        """
        try:
            return self.project(space)
        except Stopped as exc:
            self._note(space, exc)
            # It is tried again by itself, and not once more in ever smaller turns.
            self._failed[space] = _Turn(exc.generation, exc.seq, exc.seq)
            self._breaks[space] = BREAKS_MAX - 1
            return False

    def _note(self, space: str, stopped: Stopped) -> None:
        names = {
            "space": space,
            "projection": self._projection.name,
            "generation": stopped.generation,
            "seq": stopped.seq,
            "why": stopped.why,
            "seconds": RETRY_SECONDS,
        }
        with self._datastore.committed() as cursor:
            cursor.execute(NOTE_STOPPED, names)
        log.error("projection_stopped", space=space, seq=stopped.seq, why=stopped.why)

    def project(self, space: str) -> bool:
        """Projects a turn of the live generation, if no other worker is at it."""
        with self._datastore.committed() as cursor:
            locked = self.positions.lock_live(cursor, space)
            if locked is None:
                return False
            number, position, lag = locked
            events = max(1, self._turn_events // FEWER ** self._breaks[space])
            self._turn = _Turn(number, position + 1, position + min(lag, events))
            of, known = self._known.pop(space, (0, None))
            if known is None or (of, known.position) != (number, position):
                known = self._projection.memory(position, bytes_max=KNOWN_BYTES)
            # With more than a batch to do, one is written while the next one is read and folded.
            another = self._datastore.rows() if lag > BATCH_EVENTS else nullcontext(cursor)
            with another as reader:
                to: Generation[Any] = Generation(space, number, cursor, reader, known)
                reached = self.advance(to, until=position + events)
        known.committed()
        if space in self._failed and reached >= self._failed[space].last:
            del self._failed[space], self._breaks[space]
        if reached - position < lag and len(self._known) < KNOWN_SPACES:
            self._known[space] = number, known
        return reached > position

    def advance(self, to: Generation[Any], until: int = INTEGER_MAX) -> int:
        """Applies the events after a generation's position, as many as one turn may, to it.

        The generation must be locked. Returns the new position. Raises `Stopped` if already the
        first event cannot be processed.
        """
        start, connection = to.known.position, to.cursor.connection
        ends_at = time.monotonic() + TURN_SECONDS
        until = min(until, start + self._turn_events)
        failed: Exception | None = None
        while True:
            self._read_to = until
            try:
                # A savepoint: what fails leaves nothing behind.
                with connection.transaction(), connection.pipeline():
                    position = self._apply(to, start, until, ends_at)
                break
            except Exception as exc:
                if is_connection_error(exc):
                    raise
                until = min(until, max(self._read_to, start + 1))  # the log may end before it
                if until <= start + 1:
                    raise Stopped(to.number, start + 1, f"{type(exc).__name__}: {exc}") from exc
                # Which one was it? Half as many, so that all before it are projected in the end.
                # A turn that has taken its time already ends with the first one.
                is_late = time.monotonic() >= ends_at
                until = start + (1 if is_late else (until - start) // 2)
                failed = exc
                to.known.forget(start)
        if failed is not None:
            log.warning("projected_a_part", space=to.space, to=position, error=str(failed))
        return position

    def _apply(self, to: Generation[Any], start: int, until: int, ends_at: float) -> int:
        for _ in self._parts(to, start, until):
            if to.known.bytes_uncommitted >= WRITTEN_BYTES or time.monotonic() >= ends_at:
                break
        position: int = to.known.position
        if position > start:
            self.positions.advance(to.cursor, to.space, to.number, expected=start, to=position)
        return position

    def _parts(self, to: Generation[Any], position: int, until: int) -> Iterator[None]:
        """Reads, folds and writes; yields after each part."""
        while position < until:
            limit = min(BATCH_EVENTS, until - position)
            rows = self._read(to, position, limit)
            if rows:
                first, last = rows[0][0], rows[-1][0]
                assert (first, last) == (position + 1, position + len(rows)), "a hole in the log"
                yield from self._projection.apply(to, rows)
                position = last
            if len(rows) < limit:
                return

    def _read(self, of: Generation[Any], position: int, limit: int) -> list[tuple[Any, ...]]:
        names = {
            "space": of.space,
            "after": position,
            "through": INTEGER_MAX,
            "limit": limit,
            "bytes_max": BATCH_BYTES,
        }
        found = of.reader.execute(self._select_batch, names, prepare=True, binary=True).fetchall()
        self._read_to = found[-1][0] if found else position
        return found


def follow(projectors: Sequence[Projector], wakeups: Wakeups) -> None:
    """Has all of them follow all spaces, in turns, until `wakeups` is closed."""
    while not wakeups.closed:
        for projector in projectors:
            try:
                projector.take_turns(wakeups)
            except DATABASE_ERRORS as exc:
                # Also what is no fault of the connection must not end the worker.
                log.warning("projector_waits_for_the_database", error=str(exc))
                projector.start_over()
                wakeups.sleep(RECONNECT_SECONDS)
        woken = wakeups.wait(min(projector.due_in() for projector in projectors))
        for projector in projectors:
            projector.wake(woken)
