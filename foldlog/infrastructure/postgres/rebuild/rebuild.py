"""Rebuilds a projection of a space: fills a new generation from the log, then makes it live.

During the rebuild clients read the old generation. The database stores the seq up to which the new
generation is filled. If a rebuild is interrupted, the next rebuild continues after this seq.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Cursor

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.postgres.connection.datastore import CONNECTION, Datastore
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.log.heads import select_head
from foldlog.infrastructure.postgres.projection import Generation, GenerationCache, Projection

from .batches import BatchProjector
from .comparison import Difference, first_difference
from .generations import Generations

#: the events of one transaction; an interrupted rebuild repeats at most this many
BATCH_EVENTS = 40_000
#: With at most this many events left, the transaction of the swap projects them under its lock.
CATCH_UP_EVENTS = 2_000

TRY_LOCK = "SELECT pg_try_advisory_lock(hashtext(%(projection)s), hashtext(%(space)s))"

UNLOCK = "SELECT pg_advisory_unlock(hashtext(%(projection)s), hashtext(%(space)s))"


class RebuildDiffers(OperatorError):
    """The new generation differs from the live one, so it was not made live.

    Clients still read the old generation.
    """

    code = "rebuild-differs"


@dataclass(frozen=True)
class Rebuilt:
    """The result of a rebuild.

    `events` is the number of projected events. If an interrupted rebuild was continued,
    `resumed_at` is the seq at which it continued, otherwise 0. `is_compared` tells whether the new
    generation was compared with the live one.
    """

    space: str
    events: int
    resumed_at: int
    generation: int
    is_compared: bool
    seconds: float


class Rebuilder:
    """Rebuilds a projection, one space at a time.

    After each batch and at the end, it calls `report(space, position, head)` to show the progress.
    `position` is the seq of the last projected event. `head` is the seq of the log's last event.
    """

    def __init__(
        self,
        datastore: Datastore,
        projection: Projection[Any],
        *,
        report: Callable[[str, int, int], None] = lambda space, position, head: None,
        batch_events: int = BATCH_EVENTS,
    ):
        self._datastore = datastore
        self._projection = projection
        self._report = report
        self._batches = BatchProjector(projection, batch_events)
        self._positions = self._batches.positions

    def rebuild(self, space: str, *, verify: bool = False, fresh: bool = False) -> Rebuilt:
        """Fills a new generation of one space from the log, and makes this generation live.

        With `verify=True` the method first compares the new generation with the live one. If they
        differ, it raises `RebuildDiffers` and keeps both generations. A later call without `verify`
        can then make the new one live. If an earlier rebuild was interrupted, its generation is
        still unfinished. By default, the method continues to fill the unfinished generation. With
        `fresh=True` it deletes the unfinished generation and begins a new one.

        Raises `UnknownSpace` if the space is unknown. Raises `Halted` if an event cannot be
        projected. Raises `StorageUnavailable` for a temporary database error. Raises
        `OperatorError` in three cases: another rebuild of the space is running, a generation is
        deleted during the rebuild, or `verify` is set but an older version began the live one.
        """
        began = time.monotonic()
        with translated(self._datastore), self._lock(space):
            self._head(space)
            generations = Generations(self._datastore, self._projection, space)
            if verify:
                self._check_comparable(space, generations)
            generations.drop_others(keep_unfinished=not fresh)
            number, start = generations.unfinished() or generations.create()
            cache = self._projection.new_cache(start)
            while (head := self._head(space)) - cache.position > CATCH_UP_EVENTS:
                self._project_batch(space, number, cache)
                self._report(space, cache.position, head)
            self._swap(space, generations, number, verify)
            self._report(space, head, head)
            generations.drop_others(keep_unfinished=True)
            seconds = time.monotonic() - began
            return Rebuilt(space, head - start, start, number, verify, seconds)

    @contextmanager
    def _lock(self, space: str) -> Iterator[None]:
        """Locks a projection of a space against other rebuilds until the `with` block ends.

        A second rebuild could delete the rows of the unfinished generation. The lock belongs to a
        separate database session. If this process is killed, the session ends, and PostgreSQL
        releases the lock. Raises `OperatorError` if another rebuild has the lock.
        """
        params = {"space": space, "projection": self._projection.name}
        with psycopg.connect(self._datastore.url, autocommit=True, **CONNECTION) as conn:
            row = conn.execute(TRY_LOCK, params).fetchone()
            if row is None or not row[0]:
                raise OperatorError(f"another rebuild of {space!r} is running")
            try:
                yield
            finally:
                # Closing the session also frees the lock, but a moment after this method returns.
                with suppress(psycopg.Error):
                    conn.execute(UNLOCK, params)

    def _head(self, space: str) -> int:
        with self._datastore.rows() as cursor:
            return select_head(cursor, space)

    def _check_comparable(self, space: str, generations: Generations) -> None:
        live = generations.live()
        if live.has_older_rows or not live.has_history:
            raise OperatorError(
                f"an older version began the table of {space!r}, and stored its records in another "
                "form, so it cannot be compared. Rebuild it without --verify first"
            )

    def _project_batch(self, space: str, number: int, cache: GenerationCache) -> None:
        # With two connections, one reads the next page while the other one writes.
        with self._datastore.committed() as cursor, self._datastore.rows() as reader:
            locked = self._positions.lock(cursor, space, number)
            if locked is None:
                raise OperatorError(
                    f"the new generation of {space!r} was dropped during the rebuild"
                )
            if locked[1] != cache.position:
                cache.reset(locked[1])
            self._batches.advance(Generation(space, number, cursor, reader, cache))
        cache.on_commit()

    def _swap(self, space: str, generations: Generations, rebuilt: int, verify: bool) -> None:
        """Projects the last events to the new generation, and makes this generation live.

        With `verify` it also projects the live generation up to the same seq, and compares the two
        generations. If they differ, it raises `RebuildDiffers`, and the live generation stays live.
        """
        live = generations.live().number
        difference: Difference | None = None
        with self._datastore.committed() as cursor:
            for number in (live, rebuilt):
                if self._positions.lock(cursor, space, number) is None:
                    raise OperatorError(f"a generation of {space!r} was dropped during the rebuild")
            # Both are locked. Appends go on, so both are brought to the head of this moment.
            head = select_head(cursor, space)
            self._advance_to(head, cursor, space, rebuilt)
            if verify:
                self._advance_to(head, cursor, space, live)
                tables = self._projection.tables
                difference = first_difference(cursor, tables, space, live, rebuilt)
            if difference is None:
                generations.swap(cursor, live, rebuilt)
        if difference is not None:
            side = "the live table has" if difference.is_in_live else "the rebuilt table has"
            raise RebuildDiffers(
                f"{space}: {side} in {difference.table}, and the other has not: {difference.row}",
                table=difference.table,
                row=difference.row,
            )

    def _advance_to(self, head: int, cursor: Cursor[Any], space: str, number: int) -> None:
        (_, position) = self._positions.lock(cursor, space, number) or (0, 0)
        while position < head:
            cache = self._projection.new_cache(position)
            to = Generation(space, number, cursor, cursor, cache)
            position = self._batches.advance(to, until=head)
