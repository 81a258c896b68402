"""The questions of an operator: what is there, how far has it come, what stands still."""

from __future__ import annotations

from typing import NamedTuple

from ...domain.merge import FOLD_VERSION
from .datastore import Datastore
from .errors import translated

SELECT_STATUS = """
SELECT s.space,
       s.log::text,
       s.head,
       p.projection,
       p.generation,
       p.is_live,
       p.position,
       p.stopped_at,
       p.stopped_why,
       p.fold_version
  FROM spaces s
  JOIN projections p
    ON p.space = s.space
 WHERE %(space)s::text IS NULL OR s.space = %(space)s
 ORDER BY s.space, p.projection, p.generation
"""

SELECT_SPACES = """
SELECT space
  FROM spaces
 ORDER BY space
"""


class ProjectionStatus(NamedTuple):
    space: str
    log: str
    head: int
    projection: str
    generation: int
    is_live: bool
    position: int
    stopped_at: int | None
    stopped_why: str | None
    fold_version: int

    @property
    def needs_rebuild(self) -> bool:
        """Another version's merge rule made it, so this one does not go on with it."""
        return self.is_live and self.fold_version != FOLD_VERSION

    @property
    def lag(self) -> int:
        """Events of the log that the projection lacks."""
        return self.head - self.position


def status(datastore: Datastore, space: str | None = None) -> list[ProjectionStatus]:
    """A line for each generation of each projection, of one space or of all."""
    with translated(datastore), datastore.rows() as cursor:
        rows = cursor.execute(SELECT_STATUS, {"space": space}).fetchall()
    return [ProjectionStatus(*row) for row in rows]


def spaces(datastore: Datastore) -> list[str]:
    with translated(datastore), datastore.rows() as cursor:
        return [space for (space,) in cursor.execute(SELECT_SPACES).fetchall()]
