"""Runs the projector, a worker that projects new events of the logs to the live generations.

Several workers can run at the same time. If an event cannot be projected, the projection of its
space halts, and the other spaces continue. The projector stores the error in the space's row of the
table `projections`, and tries the event again every `RETRY_SECONDS`.

A fault of the database, such as a full disk, is never the fault of an event. The space pauses for
`FAULT_SECONDS`, so that its projection is up to date within seconds after the fault has ended. If
the fault lasts, the projector stores it in `failing_why` of the same row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS, is_connection_error
from foldlog.infrastructure.postgres.log.wakeups import Wakeups
from foldlog.infrastructure.postgres.projection import Generation, GenerationCache, Projection

from .batches import PAGE_EVENTS, BatchProjector, Halted

log = structlog.get_logger("foldlog.projector")

#: the events of one transaction; the other spaces wait for its end
BATCH_EVENTS = 4_000
#: the records that stay cached between the batches of a space, for this many spaces
CACHE_BYTES = 16 * 2**20
CACHED_SPACES = 4
#: how long a halted space pauses before the next attempt
RETRY_SECONDS = 30
#: After this many broken connections in a row in the batches of a space, its next event counts as
#: the cause. The last two batches are single events.
FAILURES_MAX = 5
#: how long a space pauses after a fault of the database that leaves the connection usable
FAULT_SECONDS = 1.0
#: From this many faults in a row on, the projector stores the fault for status and alarms.
FAULTS_TOLD = 3
#: Each failure divides the size of the space's batches by this number, down to a single event.
SHRINK_FACTOR = 16
#: the longest delay after a lost notification
POLL_SECONDS = 2.0
RECONNECT_SECONDS = 1.0
SPACES_PER_ROUND = 1_000

# This statement covers all spaces of a shard.
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

RECORD_HALT = """
UPDATE projections
   SET stopped_at = %(seq)s,
       stopped_why = %(why)s,
       stopped_until = now() + %(seconds)s * interval '1 second',
       failing_why = NULL,
       failing_since = NULL
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND position = %(seq)s - 1  -- unless another worker has passed the event since
RETURNING generation
"""

RECORD_FAULT = """
UPDATE projections
   SET failing_why = %(why)s,
       failing_since = coalesce(failing_since, now())
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND position = %(seq)s - 1  -- unless another worker has passed the event since
   AND failing_why IS DISTINCT FROM %(why)s
RETURNING generation
"""

#: errors of a batch that can be faults of the database or of this machine
_FAULTS = (*DATABASE_ERRORS, MemoryError, OSError)


class _Batch(NamedTuple):
    generation: int
    first: int
    last: int  #: the seq that the batch should reach


@dataclass
class _Failing:
    """The failures of a space, until its failed batch is projected."""

    batch: _Batch  #: the batch that failed last
    #: the number of failures; the limit keeps the size of a batch at one event
    failures: int = 0
    broken: int = 0  #: how many of the last failures broke a connection
    paused_until: float = 0.0  #: after a fault of the database that leaves the connection usable


class Projector:
    """Projects new events of all spaces to the live generations of one projection, in batches.

    After one batch of a space, the projector continues with the next space that has new events.
    """

    def __init__(
        self,
        datastore: Datastore,
        projection: Projection[Any],
        *,
        batch_events: int = BATCH_EVENTS,
    ):
        self._datastore = datastore
        self._projection = projection
        self._batch_events = batch_events
        self._batches = BatchProjector(projection, batch_events)
        self.positions = self._batches.positions
        self._batch: _Batch | None = None  #: the last batch that was begun
        self._failing: dict[str, _Failing] = {}
        #: for spaces far behind: the generation, and its cache for the next batch
        self._caches: dict[str, tuple[int, GenerationCache]] = {}
        self._waiting: set[str] = set()
        self._looked_through = ""  #: the last space of the last look-up, which has a limit
        #: the times of the next round, and of the next look-up of all lagging spaces
        self._resting_until = self._looking_at = 0.0

    def run(self, wakeups: Wakeups) -> None:
        """Projects the events of all spaces until `wakeups` is closed."""
        follow([self], wakeups)

    def wake(self, spaces: Iterable[str]) -> None:
        """Tells the projector that these spaces have new events. The next round projects them."""
        self._waiting.update(spaces)

    def run_round(self, wakeups: Wakeups) -> None:
        """Projects one batch of events for each space that is known to have new events.

        At most once in `POLL_SECONDS`, the method first asks the database for the spaces
        with events that are not projected yet. When all known spaces are done, the projector pauses
        for `projection.pause_seconds`. A call during this pause has no effect. Raises one of
        `DATABASE_ERRORS` if the database fails.
        """
        now = time.monotonic()
        if now < self._resting_until:
            return
        if now >= self._looking_at:
            self._waiting.update(self.lagging())
            self._looking_at = now + POLL_SECONDS
        # One batch of each space keeps a long log from delaying the others. Spaces that have failed
        # come last, because another failure, perhaps a slow one, ends the round.
        for space in sorted(self._waiting, key=lambda space: (self._failures(space), space)):
            if wakeups.closed:
                return
            failing = self._failing.get(space)
            is_paused = failing is not None and time.monotonic() < failing.paused_until
            if is_paused or not self._project_or_count(space):
                self._waiting.discard(space)  # the next look-up finds a paused space again
        if not self._waiting:
            self._resting_until = time.monotonic() + self._projection.pause_seconds

    def due_in(self) -> float:
        """Returns the number of seconds after which the caller should call `run_round` again."""
        due = self._resting_until if self._waiting else self._looking_at
        return max(0.0, due - time.monotonic())

    def reset(self) -> None:
        """Prepares the projector to continue after an outage of the database.

        The method replaces the database connections. The next round then asks the database which
        spaces have events that are not projected yet.
        """
        self._datastore.check_pool()
        self._waiting.clear()
        self._looking_at = 0.0

    def _project_or_count(self, space: str) -> bool:
        """Projects a batch of events of a space. Returns `True` if events were projected.

        Each failure of the batch makes the next batch of the space smaller, because the size of the
        batch may be the cause. When all events of the failed batch are projected, the batches
        have their full size again.

        If the batch breaks its connection, the method raises the error, because the database may be
        down. After `FAILURES_MAX` broken connections in a row, the method assumes that the next
        event of the space breaks them. It then halts the projection of the space and returns
        `False`. After any other fault of the database, the method pauses the space for
        `FAULT_SECONDS` and returns `False`. Such a fault never halts the projection.
        """
        self._batch = None
        try:
            return self.project_or_halt(space)
        except _FAULTS as exc:
            if self._batch is None:
                raise
            failing = self._failing.setdefault(space, _Failing(self._batch))
            failing.batch = failed = self._batch
            failing.failures = min(failing.failures + 1, FAILURES_MAX - 1)
            if not is_connection_error(exc):
                self._pause(space, failing, exc)
                return False
            failing.broken += 1
            if failing.broken < FAILURES_MAX:
                raise
            self._datastore.check_pool()
            # This write raises if the database is away. If it succeeds, the event is the cause.
            self._record_halt(space, Halted(failed.generation, failed.first, _why(exc)))
            return False

    def _failures(self, space: str) -> int:
        failing = self._failing.get(space)
        return 0 if failing is None else failing.failures

    def _pause(self, space: str, failing: _Failing, exc: Exception) -> None:
        """Pauses a space after a fault of the database, and stores the fault if it lasts."""
        why, failed = _why(exc), failing.batch
        failing.broken = 0
        failing.paused_until = time.monotonic() + FAULT_SECONDS
        log.warning("projection_waits", space=space, seq=failed.first, why=why)
        if failing.failures < FAULTS_TOLD:
            return
        params = {
            "space": space,
            "projection": self._projection.name,
            "generation": failed.generation,
            "seq": failed.first,
            "why": why,
        }
        # The same fault may refuse this write. The log line has told it then.
        with suppress(*DATABASE_ERRORS), self._datastore.committed() as cursor:
            cursor.execute(RECORD_FAULT, params)

    def lagging(self) -> list[str]:
        """Returns a list of spaces with events that are not projected yet.

        The list has at most `SPACES_PER_ROUND` spaces, in alphabetical order. After a full list,
        the next call continues with the spaces that follow. After a shorter list, the next call
        begins again with the first space.
        """
        params = {
            "projection": self._projection.name,
            "fold_version": self._projection.version,
            "after": self._looked_through,
            "limit": SPACES_PER_ROUND,
        }
        with self._datastore.rows() as cursor:
            found = [space for (space,) in cursor.execute(SELECT_LAGGING, params).fetchall()]
        self._looked_through = found[-1] if len(found) == SPACES_PER_ROUND else ""
        return found

    def project_or_halt(self, space: str) -> bool:
        """Projects a batch of events to the live generation of a space.

        If the first event of the batch cannot be projected, the method halts the projection of the
        space, stores the error in the database, and returns `False`. Otherwise it returns `True` if
        events were projected, and `False` if none were.
        """
        try:
            return self.project(space)
        except Halted as exc:
            self._record_halt(space, exc)
            # The retry tries the event alone, instead of bisecting to it again.
            batch = _Batch(exc.generation, exc.seq, exc.seq)
            self._failing[space] = _Failing(batch, failures=FAILURES_MAX - 1)
            return False

    def _record_halt(self, space: str, halted: Halted) -> None:
        params = {
            "space": space,
            "projection": self._projection.name,
            "generation": halted.generation,
            "seq": halted.seq,
            "why": halted.why,
            "seconds": RETRY_SECONDS,
        }
        with self._datastore.committed() as cursor:
            cursor.execute(RECORD_HALT, params)
        log.error("projection_stopped", space=space, seq=halted.seq, why=halted.why)

    def project(self, space: str) -> bool:
        """Projects a batch of events to the live generation of a space, in one transaction.

        Returns `True` if events were projected. Returns `False` if there were no new events, or if
        the generation is halted, locked by another worker, or filled by another version of Foldlog.
        Raises `Halted` if the first event cannot be projected. Raises one of `DATABASE_ERRORS` if
        the database fails.
        """
        with self._datastore.committed() as cursor:
            locked = self.positions.lock_live(cursor, space)
            if locked is None:
                return False
            number, position, lag = locked
            events = max(1, self._batch_events // SHRINK_FACTOR ** self._failures(space))
            self._batch = _Batch(number, position + 1, position + min(lag, events))
            cache = self._take_cache(space, number, position)
            # With more than one page to do, a second connection reads the next page while this one
            # writes.
            another = self._datastore.rows() if lag > PAGE_EVENTS else nullcontext(cursor)
            with another as reader:
                to: Generation[Any] = Generation(space, number, cursor, reader, cache)
                reached = self._batches.advance(to, until=position + events)
        cache.on_commit()
        failing = self._failing.get(space)
        if failing is not None and reached >= failing.batch.last:
            del self._failing[space]
        if reached - position < lag and len(self._caches) < CACHED_SPACES:
            self._caches[space] = number, cache
        return reached > position

    def _take_cache(self, space: str, number: int, position: int) -> GenerationCache:
        of, cache = self._caches.pop(space, (0, None))
        if cache is None or (of, cache.position) != (number, position):
            cache = self._projection.new_cache(position, bytes_max=CACHE_BYTES)
        return cache


def _why(exc: Exception) -> str:
    """Returns the text of an error as `foldlog status` shows it, with the error's class."""
    return f"{type(exc).__name__}: {str(exc).strip()}"


def follow(projectors: Sequence[Projector], wakeups: Wakeups) -> None:
    """Runs all projectors in turn, in the calling thread, until `wakeups` is closed.

    `wakeups` tells the projectors which spaces have new events. After a database error the function
    waits `RECONNECT_SECONDS` and then continues.
    """
    while not wakeups.closed:
        for projector in projectors:
            try:
                projector.run_round(wakeups)
            except DATABASE_ERRORS as exc:
                # Any database error leads to a retry, because the worker must go on.
                log.warning("projector_waits_for_the_database", error=str(exc))
                projector.reset()
                wakeups.sleep(RECONNECT_SECONDS)
        woken = wakeups.wait(min(projector.due_in() for projector in projectors))
        for projector in projectors:
            projector.wake(woken)
