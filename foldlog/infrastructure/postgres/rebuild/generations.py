"""Lists, creates, swaps and drops the generations of a projection in one space.

A generation is one complete set of rows in a projection's tables. Clients read the live generation.
A rebuild fills a new one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import Cursor
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.projection import Projection

SELECT_GENERATIONS = """
SELECT generation, position, is_live, fold_version, has_history, has_older_rows
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
 ORDER BY generation
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

# Nothing continues or compares a generation of version 0.
MARK_DROPPED = """
UPDATE projections
   SET fold_version = 0
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND NOT is_live
RETURNING generation
"""

DELETE_ROWS = """
DELETE FROM {table}
 WHERE space = %(space)s
   AND generation = %(generation)s
"""


class GenerationRow(NamedTuple):
    """A row of the table `projections`, which describes one generation."""

    number: int
    position: int
    is_live: bool
    fold_version: int
    has_history: bool
    has_older_rows: bool  #: an older version of the code began it


class Generations:
    """Manages the generations of one projection in one space. The space must already exist."""

    def __init__(self, datastore: Datastore, projection: Projection[Any], space: str):
        self._datastore = datastore
        self._projection = projection
        self._space = space

    def all(self) -> list[GenerationRow]:
        with self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_GENERATIONS, self._params()).fetchall()
        return [GenerationRow(*row) for row in rows]

    def live(self) -> GenerationRow:
        live = next((generation for generation in self.all() if generation.is_live), None)
        if live is None:  # a damaged database: each projection of a space has a live generation
            raise OperatorError(f"the space {self._space!r} has no live table to compare with")
        return live

    def unfinished(self) -> tuple[int, int] | None:
        """Returns (number, position) of a generation that an interrupted rebuild did not finish.

        A new rebuild can continue to fill this generation. If there is no such generation, the
        method returns `None`.
        """
        unfinished = (g for g in self.all() if not g.is_live)
        return next(((g.number, g.position) for g in unfinished), None)

    def create(self) -> tuple[int, int]:
        """Creates an empty generation, and returns its number and its position, which is 0."""
        number = self.all()[-1].number + 1
        params = self._params(number) | {"fold_version": self._projection.version}
        with self._datastore.committed() as cursor:
            cursor.execute(CREATE_GENERATION, params)
        return number, 0

    def swap(self, cursor: Cursor[Any], live: int, rebuilt: int) -> None:
        """Makes the generation `rebuilt` the live one, in place of the generation `live`.

        The caller must have locked both generations.
        """
        cursor.execute(SET_LIVE, self._params(live) | {"is_live": False})
        cursor.execute(SET_LIVE, self._params(rebuilt) | {"is_live": True})

    def drop_others(self, *, keep_unfinished: bool) -> None:
        """Deletes all generations except the live one, and deletes their rows.

        With `keep_unfinished=True` the method also keeps newer generations that a rebuild with this
        version of Foldlog can continue to fill.
        """
        live = self.live().number
        for generation in self.all():
            is_ours = generation.fold_version == self._projection.version
            continues = keep_unfinished and generation.number > live and is_ours
            if not generation.is_live and not continues:
                self._drop(generation.number)

    def _drop(self, number: int) -> None:
        # The rows are deleted first. If this is interrupted, the generation is still listed, and
        # the next rebuild drops it. The mark tells a verification that its rows are incomplete.
        with self._datastore.committed() as cursor:
            cursor.execute(MARK_DROPPED, self._params(number))
        for table in self._projection.tables:
            statement = SQL(DELETE_ROWS).format(table=Identifier(table))
            with self._datastore.committed() as cursor:
                cursor.execute(statement, self._params(number))
        with self._datastore.committed() as cursor:
            cursor.execute(DROP_GENERATION, self._params(number))

    def _params(self, number: int | None = None) -> dict[str, Any]:
        return {
            "space": self._space,
            "projection": self._projection.name,
            "generation": number,
        }
