"""Projects batches of events to a generation that the caller has locked.

If an event of a batch cannot be projected, the module tries the first half of the batch, then the
first half of that, and so on. In this way it projects the events before the bad one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import structlog

from foldlog.domain.limits import INTEGER_MAX
from foldlog.infrastructure.postgres.connection.errors import is_fault_of_the_database
from foldlog.infrastructure.postgres.log.pages import page_params
from foldlog.infrastructure.postgres.projection import Generation, Projection

from .positions import Positions

log = structlog.get_logger("foldlog.projector")

#: the events that are read, folded and written together
PAGE_EVENTS = 1_000
PAGE_BYTES = 8 * 2**20
#: A transaction ends after this many written bytes, because they stay in memory until then.
WRITTEN_BYTES = 64 * 2**20
#: A transaction ends after this time.
BATCH_SECONDS = 2.0


class Halted(Exception):
    """The event with the seq `seq` cannot be projected. `why` is the text of the error."""

    def __init__(self, generation: int, seq: int, why: str):
        super().__init__(f"seq {seq}: {why}")
        self.generation = generation
        self.seq = seq
        self.why = why


class BatchProjector:
    """Projects batches of at most `batch_events` events to a generation.

    Before each call of `advance`, the caller must begin a transaction and lock the generation.
    After the call, the caller must commit.
    """

    def __init__(self, projection: Projection[Any], batch_events: int):
        self._projection = projection
        self._batch_events = batch_events
        self._read_to = 0  #: the last seq that was read, or is about to be read
        self.positions = Positions(projection.name, projection.version)

    def advance(self, to: Generation[Any], until: int = INTEGER_MAX) -> int:
        """Projects the events after the generation's position, and returns the new position.

        The method stops at the seq `until`, or earlier if the batch reaches its limit of events,
        bytes or time. If a later event of the batch cannot be projected, the method stops before
        this event. If the first event cannot be projected, the method raises `Halted`. A fault of
        the database or of the machine, such as a full disk, says nothing about the events: the
        method raises it unchanged. The caller must have locked the generation.
        """
        start, connection = to.cache.position, to.cursor.connection
        ends_at = time.monotonic() + BATCH_SECONDS
        until = min(until, start + self._batch_events)
        failed: Exception | None = None
        while True:
            self._read_to = until
            try:
                # The savepoint undoes the writes of a failed attempt.
                with connection.transaction(), connection.pipeline():
                    position = self._apply(to, start, until, ends_at)
                break
            except Exception as exc:
                if is_fault_of_the_database(exc):
                    raise
                until = min(until, max(self._read_to, start + 1))  # the log may end before it
                if until <= start + 1:
                    raise Halted(to.number, start + 1, f"{type(exc).__name__}: {exc}") from exc
                # Bisection finds the event that fails, and projects all events before it. A batch
                # that has used up its time tries only the first event.
                is_late = time.monotonic() >= ends_at
                until = start + (1 if is_late else (until - start) // 2)
                failed = exc
                to.cache.reset(start)
        if failed is not None:
            log.warning("projected_a_part", space=to.space, to=position, error=str(failed))
        return position

    def _apply(self, to: Generation[Any], start: int, until: int, ends_at: float) -> int:
        for _ in self._parts(to, start, until):
            if to.cache.bytes_uncommitted >= WRITTEN_BYTES or time.monotonic() >= ends_at:
                break
        position: int = to.cache.position
        if position > start:
            self.positions.advance(to.cursor, to.space, to.number, expected=start, to=position)
        return position

    def _parts(self, to: Generation[Any], position: int, until: int) -> Iterator[None]:
        """Reads events page by page, folds them, and writes the resulting rows in parts.

        The generator yields after it has written a part. The caller may stop the iteration there.
        """
        while position < until:
            limit = min(PAGE_EVENTS, until - position)
            rows = self._read(to, position, limit)
            if rows:
                first, last = rows[0][0], rows[-1][0]
                assert (first, last) == (position + 1, position + len(rows)), "a hole in the log"
                yield from self._projection.apply(to, rows)
                position = last
            if len(rows) < limit:
                return

    def _read(self, of: Generation[Any], position: int, limit: int) -> list[tuple[Any, ...]]:
        params = page_params(of.space, position, INTEGER_MAX, limit=limit, bytes_max=PAGE_BYTES)
        statement = self._projection.select_page
        found = of.reader.execute(statement, params, prepare=True, binary=True).fetchall()
        self._read_to = found[-1][0] if found else position
        return found
