"""The questions of an operator: what is there, how far has it come, what stands still."""

from __future__ import annotations

from typing import NamedTuple

from ...domain.ports import Gauge
from .arrays import integer_array, text_array
from .datastore import Datastore
from .errors import translated
from .projections import VERSIONS

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


# Over all spaces: a label a space would be more series than anybody can keep.
SELECT_GAUGES = """
SELECT p.projection,
       count(*),
       sum(s.head),
       sum(s.head - p.position),
       max(s.head - p.position),
       count(p.stopped_at),
       count(*) FILTER (WHERE p.fold_version <> v.fold_version)
  FROM spaces s
  JOIN projections p
    ON p.space = s.space
  JOIN unnest(%(names)s::text[], %(versions)s::integer[]) AS v (projection, fold_version)
    ON v.projection = p.projection
 WHERE p.is_live
 GROUP BY p.projection
 ORDER BY p.projection
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
        return self.is_live and self.fold_version != VERSIONS.get(self.projection)

    @property
    def lag(self) -> int:
        """Events of the log that the projection lacks."""
        return self.head - self.position


def status(datastore: Datastore, space: str | None = None) -> list[ProjectionStatus]:
    """A line for each generation of each projection, of one space or of all."""
    with translated(datastore), datastore.rows() as cursor:
        rows = cursor.execute(SELECT_STATUS, {"space": space}).fetchall()
    return [ProjectionStatus(*row) for row in rows]


def gauges(datastore: Datastore) -> list[Gauge]:
    """What monitoring asks: how much there is, how far projections are, which stand still."""
    with translated(datastore), datastore.rows() as cursor:
        names = {"names": text_array(VERSIONS), "versions": integer_array(VERSIONS.values())}
        rows = cursor.execute(SELECT_GAUGES, names).fetchall()
    found: list[Gauge] = []
    for projection, count, events, lag, lag_max, stopped, stale in rows:
        labels = {"projection": projection}
        if not found:
            found += [
                Gauge("foldlog_spaces", "Spaces.", count),
                Gauge("foldlog_events", "Events of all spaces.", float(events)),
            ]
        found += [
            Gauge("foldlog_lag_events", "Events not projected yet.", float(lag), labels),
            Gauge(
                "foldlog_lag_events_max", "The same of the space furthest behind.", lag_max, labels
            ),
            Gauge(
                "foldlog_stopped_spaces", "Spaces whose projection stands still.", stopped, labels
            ),
            Gauge("foldlog_stale_spaces", "Spaces that need a rebuild.", stale, labels),
        ]
    return found


def spaces(datastore: Datastore) -> list[str]:
    with translated(datastore), datastore.rows() as cursor:
        return [space for (space,) in cursor.execute(SELECT_SPACES).fetchall()]
