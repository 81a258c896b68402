"""Rebuilding a projection: a new generation beside the live one, compared, and swapped in.

Clients go on reading the live generation all the while. Progress is the new generation's own
position, so a rebuild that was killed goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Cursor
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import OperatorError, UnknownSpace
from foldlog.infrastructure.postgres.connection.datastore import CONNECTION, Datastore
from foldlog.infrastructure.postgres.connection.errors import translated
from foldlog.infrastructure.postgres.projection import Generation, Memory, Projection

from .projector import Projector

#: in one transaction: what a rebuild that is killed does anew
TURN_EVENTS = 40_000
#: with this few events left, the last ones are caught up under the lock that ends in the swap
CATCH_UP_EVENTS = 2_000

TRY_LOCK = "SELECT pg_try_advisory_lock(hashtext(%(projection)s), hashtext(%(space)s))"

UNLOCK = "SELECT pg_advisory_unlock(hashtext(%(projection)s), hashtext(%(space)s))"

SELECT_HEAD = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
"""

SELECT_GENERATIONS = """
SELECT generation, position, is_live, fold_version
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
 ORDER BY generation
"""

SELECT_HAS_HISTORY = """
SELECT has_history
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND is_live
"""

CREATE_GENERATION = """
INSERT INTO projections (space, projection, generation, is_live, fold_version)
VALUES (%(space)s, %(projection)s, %(generation)s, false, %(fold_version)s)
RETURNING generation
"""

DROP_GENERATION = """
DELETE FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND NOT is_live
RETURNING generation
"""

SET_LIVE = """
UPDATE projections
   SET is_live = %(is_live)s
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
RETURNING generation
"""

# Rows that one generation has and the other has not, as text, the first ones by key.
COMPARE = """
SELECT to_json(t)::text, in_live
  FROM (
       (SELECT {columns}, true AS in_live FROM {table}
         WHERE space = %(space)s AND generation = %(live)s
        EXCEPT ALL
        SELECT {columns}, true FROM {table}
         WHERE space = %(space)s AND generation = %(rebuilt)s)
       UNION ALL
       (SELECT {columns}, false FROM {table}
         WHERE space = %(space)s AND generation = %(rebuilt)s
        EXCEPT ALL
        SELECT {columns}, false FROM {table}
         WHERE space = %(space)s AND generation = %(live)s)
       ) t
 ORDER BY {key}, in_live DESC
 LIMIT 1
"""

SELECT_COLUMNS = """
SELECT column_name, data_type
  FROM information_schema.columns
 WHERE table_schema = current_schema()
   AND table_name = %(table)s
   AND column_name NOT IN ('space', 'generation')
 ORDER BY ordinal_position
"""


class RebuildDiffers(OperatorError):
    """The rebuilt projection differs from the live one, which was kept."""

    code = "rebuild-differs"


@dataclass(frozen=True)
class Difference:
    """The first row that the two generations do not share."""

    table: str
    row: str
    is_in_live: bool


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did."""

    space: str
    events: int
    resumed_at: int
    generation: int
    is_compared: bool
    seconds: float


class Rebuilder:
    """Rebuilds a projection of one space after another.

    `report(space, position, head)` is called after each turn.
    """

    def __init__(
        self,
        datastore: Datastore,
        projection: Projection[Any],
        *,
        report: Callable[[str, int, int], None] = lambda space, position, head: None,
        turn_events: int = TURN_EVENTS,
    ):
        self._datastore = datastore
        self._projection = projection
        self._report = report
        self._projector = Projector(datastore, projection, turn_events=turn_events)
        self._positions = self._projector.positions

    def rebuild(self, space: str, *, verify: bool = False, fresh: bool = False) -> Rebuilt:
        """Rebuilds one space, and swaps the new generation in.

        With `verify` the two are compared first, and `RebuildDiffers` is raised if they differ;
        the live generation is then kept, and the new one too, for a `rebuild` without `verify`.
        `fresh` throws away what an interrupted rebuild left. Raises `UnknownSpace`, `Stopped`.
        """
        began = time.monotonic()
        with translated(self._datastore), self._alone(space):
            self._head(space)
            if verify:
                self._check_comparable(space)
            self._drop_others(space, keep_unfinished=not fresh)
            generation, start = self._unfinished(space) or self._create(space)
            known = self._projection.memory(start)
            while (head := self._head(space)) - known.position > CATCH_UP_EVENTS:
                self._turn(space, generation, known)
                self._report(space, known.position, head)
            self._swap(space, generation, verify)
            self._report(space, head, head)
            self._drop_others(space, keep_unfinished=True)
            seconds = time.monotonic() - began
            return Rebuilt(space, head - start, start, generation, verify, seconds)

    @contextmanager
    def _alone(self, space: str) -> Iterator[None]:
        """One rebuild of a space at a time: two would drop, or compare, each other's rows.

        The lock is the session's, so it goes with a rebuild that is killed.
        """
        with psycopg.connect(self._datastore.url, autocommit=True, **CONNECTION) as conn:
            row = conn.execute(TRY_LOCK, self._names(space)).fetchone()
            if row is None or not row[0]:
                raise OperatorError(f"another rebuild of {space!r} is under way")
            try:
                yield
            finally:
                # A closed session lets go of it too, but a moment later than we return.
                with suppress(psycopg.Error):
                    conn.execute(UNLOCK, self._names(space))

    def _head(self, space: str) -> int:
        with self._datastore.rows() as cursor:
            row = cursor.execute(SELECT_HEAD, {"space": space}).fetchone()
        if row is None:
            raise UnknownSpace(space)
        return int(row[0])

    def _check_comparable(self, space: str) -> None:
        with self._datastore.rows() as cursor:
            row = cursor.execute(SELECT_HAS_HISTORY, self._names(space)).fetchone()
        if row != (True,):
            raise OperatorError(
                f"an older version made the table of {space!r}, without its history: it cannot be "
                "compared. Rebuild it without --verify first"
            )

    def _generations(self, cursor: Cursor[Any], space: str) -> list[tuple[int, int, bool, int]]:
        return cursor.execute(SELECT_GENERATIONS, self._names(space)).fetchall()

    def _unfinished(self, space: str) -> tuple[int, int] | None:
        with self._datastore.rows() as cursor:
            for generation, position, is_live, _ in self._generations(cursor, space):
                if not is_live:
                    return generation, position
        return None

    def _create(self, space: str) -> tuple[int, int]:
        with self._datastore.committed() as cursor:
            newest = self._generations(cursor, space)[-1][0]
            names = self._names(space, newest + 1) | {"fold_version": self._projection.version}
            cursor.execute(CREATE_GENERATION, names)
            return newest + 1, 0

    def _turn(self, space: str, generation: int, known: Memory) -> None:
        # Two connections: one writes what was folded, while we read from the other and fold on.
        with self._datastore.committed() as cursor, self._datastore.rows() as reader:
            locked = self._positions.lock(cursor, space, generation)
            if locked is None:
                raise OperatorError(f"the new generation of {space!r} has been dropped meanwhile")
            if locked[1] != known.position:
                known.forget(locked[1])
            self._projector.advance(Generation(space, generation, cursor, reader, known))
        known.committed()

    def _swap(self, space: str, generation: int, verify: bool) -> None:
        """Brings both generations to the same seq, compares them, and makes the new one live."""
        with self._datastore.committed() as cursor:
            live = next(
                (g for g, _, is_live, _ in self._generations(cursor, space) if is_live), None
            )
            assert live is not None
            for number in (live, generation):
                if self._positions.lock(cursor, space, number) is None:
                    raise OperatorError(f"a generation of {space!r} has been dropped meanwhile")
            # Both locked, both come to the same seq, and appends may go on.
            names = {"space": space}
            (head,) = cursor.execute(SELECT_HEAD, names).fetchone() or (0,)
            self._advance_to(head, cursor, space, generation)
            difference = None
            if verify:
                self._advance_to(head, cursor, space, live)
                difference = self._first_difference(cursor, space, live, generation)
            if difference is None:
                cursor.execute(SET_LIVE, self._names(space, live) | {"is_live": False})
                cursor.execute(SET_LIVE, self._names(space, generation) | {"is_live": True})
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
            to = Generation(space, number, cursor, cursor, self._projection.memory(position))
            position = self._projector.advance(to, until=head)

    def _first_difference(
        self, cursor: Cursor[Any], space: str, live: int, rebuilt: int
    ) -> Difference | None:
        for table, key in self._projection.tables.items():
            columns = [
                # json has no equality; its text is what we wrote, so it is what we compare
                SQL("{0}::text AS {0}" if type == "json" else "{0}").format(Identifier(name))
                for name, type in cursor.execute(SELECT_COLUMNS, {"table": table}).fetchall()
            ]
            statement = SQL(COMPARE).format(
                columns=SQL(", ").join(columns), table=Identifier(table), key=SQL(key)
            )
            names = {"space": space, "live": live, "rebuilt": rebuilt}
            found = cursor.execute(statement, names).fetchone()
            if found is not None:
                return Difference(table, found[0], found[1])
        return None

    def _drop_others(self, space: str, *, keep_unfinished: bool) -> None:
        """Drops old generations, and unfinished ones that this code would not go on with."""
        with self._datastore.rows() as cursor:
            generations = self._generations(cursor, space)
        live = next(generation for generation, _, is_live, _ in generations if is_live)
        for generation, _, is_live, fold_version in generations:
            is_ours = fold_version == self._projection.version
            goes_on = keep_unfinished and generation > live and is_ours
            if not is_live and not goes_on:
                # Its rows first: as long as the generation is listed, it will be dropped again.
                for table in self._projection.tables:
                    statement = SQL(
                        "DELETE FROM {} WHERE space = %(space)s AND generation = %(generation)s"
                    ).format(Identifier(table))
                    with self._datastore.committed() as cursor:
                        cursor.execute(statement, self._names(space, generation))
                with self._datastore.committed() as cursor:
                    cursor.execute(DROP_GENERATION, self._names(space, generation))

    def _names(self, space: str, generation: int | None = None) -> dict[str, Any]:
        return {
            "space": space,
            "projection": self._projection.name,
            "generation": generation,
        }
