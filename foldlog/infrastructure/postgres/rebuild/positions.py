"""How far a projection has come: eventsourcing's tracking recorder, a position a space.

`application_name` is the space, whose log is the upstream application, and `notification_id` is
the seq. The position moves in the transaction of what was projected, and never back; so every
event is applied exactly once, whatever crashes in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from psycopg import Cursor
from psycopg.sql import SQL

from foldlog.infrastructure.postgres.connection.datastore import Datastore

ADVANCE = """
UPDATE projections
   SET position = %(position)s, stopped_at = NULL, stopped_why = NULL, stopped_until = NULL
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND position = %(expected)s
RETURNING position
"""

MAX_POSITION = """
SELECT max(position) AS max
  FROM projections
 WHERE space = %s
   AND projection = '{projection}'
   AND is_live
"""

# SKIP LOCKED: a space that another worker projects just now is not waited for. One that stopped
# rests until its time has come, however many appends announce it. What other code folded is left
# as it is until it is rebuilt: half of one rule and half of another would be neither.
LOCK_LIVE = """
SELECT generation,
       position,
       (SELECT head FROM spaces WHERE space = %(space)s) - position
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND is_live
   AND fold_version = %(fold_version)s
   AND (stopped_until IS NULL OR stopped_until < now())
   FOR UPDATE SKIP LOCKED
"""

LOCK_GENERATION = """
SELECT generation, position
  FROM projections
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   FOR UPDATE
"""


@dataclass(frozen=True)
class Position(Tracking):
    """The seq that one generation of a projection has reached, and the one it comes from."""

    generation: int
    expected: int


class PositionRecorder(PostgresTrackingRecorder):
    def __init__(self, datastore: Datastore, projection: str, version: int):
        super().__init__(datastore, tracking_table_name="projections")
        assert projection.isidentifier()
        self._projection = projection
        self._version = version
        # For the library's own `max_tracking_id`, whose statement knows no generations.
        self.max_tracking_id_statement = SQL(MAX_POSITION).format(projection=SQL(projection))

    def lock_live(self, cursor: Cursor[Any], space: str) -> tuple[int, int, int] | None:
        """The live generation, its position, and its lag; `None` if it is not to be had now."""
        names = {
            "space": space,
            "projection": self._projection,
            "fold_version": self._version,
        }
        return cursor.execute(LOCK_LIVE, names, prepare=True).fetchone()

    def lock(self, cursor: Cursor[Any], space: str, generation: int) -> tuple[int, int] | None:
        """Waits for one generation; `None` if it is gone."""
        names = {"space": space, "projection": self._projection, "generation": generation}
        return cursor.execute(LOCK_GENERATION, names, prepare=True).fetchone()

    def advance(
        self, cursor: Cursor[Any], space: str, generation: int, *, expected: int, to: int
    ) -> None:
        """Moves a locked position. Raises `IntegrityError` if it is not where it should be."""
        assert to > expected
        self._insert_tracking(cursor, Position(space, to, generation, expected))

    def _insert_tracking(self, curs: Cursor[Any], tracking: Tracking) -> None:
        assert isinstance(tracking, Position)
        moved = curs.execute(
            ADVANCE,
            {
                "space": tracking.application_name,
                "projection": self._projection,
                "generation": tracking.generation,
                "position": tracking.notification_id,
                "expected": tracking.expected,
            },
            prepare=True,
        ).fetchone()
        if moved is None:
            raise IntegrityError(f"{tracking} was applied already")
