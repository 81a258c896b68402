"""Locks generations of projections, and updates their positions.

The position of a generation is the seq of the last event that was projected to it. A worker writes
the projected rows and the new position in the same transaction. Each event is therefore projected
exactly once, even if a worker crashes.
"""

from __future__ import annotations

from typing import Any

from eventsourcing.persistence import IntegrityError
from psycopg import Cursor

ADVANCE = """
UPDATE projections
   SET position = %(position)s,
       stopped_at = NULL, stopped_why = NULL, stopped_until = NULL,
       failing_why = NULL, failing_since = NULL
 WHERE space = %(space)s
   AND projection = %(projection)s
   AND generation = %(generation)s
   AND position = %(expected)s
RETURNING position
"""

# SKIP LOCKED passes over a space that another worker projects now. A halted space is skipped until
# `stopped_until`, also if appends announce it. A generation of another version must be rebuilt,
# because its older rows were folded by other rules.
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
    """Locks generations of one projection in the table `projections`, and updates their positions.

    The position of a generation is the seq of the last event that was projected to it. `version` is
    the version of the projection's code.
    """

    def __init__(self, projection: str, version: int):
        self._projection = projection
        self._version = version

    def lock_live(self, cursor: Cursor[Any], space: str) -> tuple[int, int, int] | None:
        """Locks the live generation of a space until the transaction ends.

        Returns the generation's number, its position, and its lag in events. Returns `None`,
        without waiting, if another worker has locked the generation, if the generation is halted,
        or if another version of Foldlog filled it.
        """
        params = {
            "space": space,
            "projection": self._projection,
            "fold_version": self._version,
        }
        return cursor.execute(LOCK_LIVE, params, prepare=True).fetchone()

    def lock(self, cursor: Cursor[Any], space: str, generation: int) -> tuple[int, int] | None:
        """Waits until it can lock a generation, and returns the generation's number and position.

        The generation stays locked until the transaction ends. Returns `None` if the generation was
        deleted.
        """
        params = {"space": space, "projection": self._projection, "generation": generation}
        return cursor.execute(LOCK_GENERATION, params, prepare=True).fetchone()

    def advance(
        self, cursor: Cursor[Any], space: str, generation: int, *, expected: int, to: int
    ) -> None:
        """Changes the stored position of a locked generation from `expected` to `to`.

        The position is the seq of the last event that was projected to the generation. Raises
        `IntegrityError` if the stored position is not `expected`.
        """
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
