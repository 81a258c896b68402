"""The positions of projections: the seq that each generation has reached in each space.

A position moves in the transaction that writes the projected rows, so each event is applied exactly
once, also after a crash.
"""

from __future__ import annotations

from typing import Any

from eventsourcing.persistence import IntegrityError
from psycopg import Cursor

ADVANCE = """
UPDATE projections
   SET position = %(position)s, stopped_at = NULL, stopped_why = NULL, stopped_until = NULL
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND position = %(expected)s
RETURNING position
"""

# SKIP LOCKED passes over a space that another worker projects now. A halted space is skipped until
# `stopped_until`, also if appends announce it. A generation of another version must be rebuilt,
# because half of it would follow another rule.
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


class Positions:
    """Locks and moves the positions of one projection."""

    def __init__(self, projection: str, version: int):
        self._projection = projection
        self._version = version

    def lock_live(self, cursor: Cursor[Any], space: str) -> tuple[int, int, int] | None:
        """Locks the live generation. Returns its number, its position and its lag.

        Returns `None` if the generation is locked, halted, or of another version.
        """
        params = {
            "space": space,
            "projection": self._projection,
            "fold_version": self._version,
        }
        return cursor.execute(LOCK_LIVE, params, prepare=True).fetchone()

    def lock(self, cursor: Cursor[Any], space: str, generation: int) -> tuple[int, int] | None:
        """Waits for the lock on a generation. Returns its number and position.

        Returns `None` if the generation was dropped.
        """
        params = {"space": space, "projection": self._projection, "generation": generation}
        return cursor.execute(LOCK_GENERATION, params, prepare=True).fetchone()

    def advance(
        self, cursor: Cursor[Any], space: str, generation: int, *, expected: int, to: int
    ) -> None:
        """Moves a locked position. Raises `IntegrityError` if it differs from `expected`."""
        assert to > expected
        params = {
            "space": space,
            "projection": self._projection,
            "generation": generation,
            "position": to,
            "expected": expected,
        }
        if cursor.execute(ADVANCE, params, prepare=True).fetchone() is None:
            raise IntegrityError(
                f"{space}: generation {generation} of {self._projection} is not at {expected}"
            )
