"""Reads the state of spaces, projections and checkpoints, for `foldlog status` and for metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foldlog.domain.access import Role
from foldlog.domain.ports import Gauge
from foldlog.infrastructure.postgres.connection.arrays import integer_array, text_array
from foldlog.infrastructure.postgres.connection.datastore import Datastore

from .log.alarms import Holes, find_holes
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
       p.fold_version,
       p.has_history,
       p.failing_why,
       p.failing_since::text
  FROM spaces s
  JOIN projections p
    ON p.space = s.space
 WHERE %(space)s::text IS NULL OR s.space = %(space)s
 ORDER BY s.space, p.projection, p.generation
"""

SELECT_HEADS = """
SELECT space, head
  FROM spaces
 WHERE NOT importing
   AND (%(spaces)s::text[] IS NULL OR space = ANY(%(spaces)s::text[]))
 ORDER BY head DESC, space
"""


# Totals over all spaces, because a label for each space would make too many time series.
SELECT_GAUGES = """
SELECT p.projection,
       count(*),
       sum(s.head),
       sum(s.head - p.position),
       max(s.head - p.position),
       count(p.stopped_at),
       count(*) FILTER (WHERE p.fold_version <> v.fold_version OR NOT p.has_history)
  FROM spaces s
  JOIN projections p
    ON p.space = s.space
  JOIN unnest(%(projections)s::text[], %(versions)s::integer[]) AS v (projection, fold_version)
    ON v.projection = p.projection
 WHERE p.is_live
 GROUP BY p.projection
 ORDER BY p.projection
"""


SELECT_CHECKPOINTS = """
SELECT s.space,
       s.head,
       coalesce(c.size, 0),
       c.signed_at::text,
       c.alarm,
       c.alarm_detail,
       c.alarm_raised_by::text
  FROM spaces s
  JOIN checkpoints c
    ON c.space = s.space
 WHERE %(space)s::text IS NULL OR s.space = %(space)s
 ORDER BY s.space
"""

SELECT_INCOMPLETE = """
SELECT space, alarm, alarm_since::text
  FROM spaces
 WHERE alarm IS NOT NULL
   AND (%(space)s::text IS NULL OR space = %(space)s)
 ORDER BY space
"""

SELECT_IMPORTS = """
SELECT space, log::text, head
  FROM spaces
 WHERE importing
   AND (%(space)s::text IS NULL OR space = %(space)s)
 ORDER BY space
"""

SELECT_SIGNING = """
SELECT count(c.alarm), max(s.head - c.size)
  FROM spaces s
  JOIN checkpoints c
    ON c.space = s.space
"""


# Each part reads few rows by a partial index, because `GET /readyz` is public and asks often.
SELECT_ALARMS = """
SELECT alarm, count(DISTINCT space)
  FROM (
       SELECT 'projection-halted' AS alarm, space
         FROM projections
        WHERE is_live
          AND stopped_at IS NOT NULL
        UNION ALL
       SELECT 'projection-failing', space
         FROM projections
        WHERE is_live
          AND failing_why IS NOT NULL
        UNION ALL
       SELECT 'signing-stopped', space
         FROM checkpoints
        WHERE alarm IS NOT NULL
        UNION ALL
       SELECT 'another-folder', folder::text
         FROM signers
        WHERE refused_why IS NOT NULL
        UNION ALL
       SELECT 'log-incomplete', space
         FROM spaces
        WHERE alarm IS NOT NULL
        UNION ALL
       SELECT 'space-importing', space
         FROM spaces
        WHERE importing
       ) alarms
 GROUP BY alarm
 ORDER BY alarm
"""

#: The codes of all alarms, which need an operator. Each is about one space, except
#: `another-folder`, which is about one folder that may not sign.
ALARMS = (
    "another-folder",
    "log-incomplete",
    "projection-failing",
    "projection-halted",
    "signing-stopped",
    "space-importing",
)


SELECT_EVERY_SPACE_TOKENS = """
SELECT role, count(*)
  FROM tokens
 WHERE space = ''
   AND revoked_at_ms IS NULL
 GROUP BY role
 ORDER BY role
"""


class CheckpointStatus(NamedTuple):
    """The last signed checkpoint of a space, and the error of the signer, if there is one.

    `size` is the number of signed events. `alarm` is the code of the signer's error, or `None`.
    `alarm_detail` is the text of this error, and `alarm_raised_by` the id of the signer's folder.
    """

    space: str
    head: int
    size: int
    signed_at: str | None
    alarm: str | None
    alarm_detail: str | None
    alarm_raised_by: str | None


class IncompleteLog(NamedTuple):
    """The alarm of a space whose log has missing events.

    `alarm` describes the hole that raised the alarm, and `since` is the time of the alarm. `holes`
    has all holes that the log has at present.
    """

    space: str
    alarm: str
    since: str
    holes: Holes


class UnfinishedImport(NamedTuple):
    """A space that is being imported, or whose import was interrupted. `events` is the number of
    events that are stored so far."""

    space: str
    log: str
    events: int


class ProjectionStatus(NamedTuple):
    """The state of one generation of a projection in one space.

    If an event could not be projected, `stopped_at` is its seq and `stopped_why` is the error. If a
    fault of the database lasts, such as a full disk, `failing_why` is the fault and `failing_since`
    its time. The projection continues by itself when the fault has ended.
    """

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
    has_history: bool
    failing_why: str | None
    failing_since: str | None

    @property
    def is_foreign(self) -> bool:
        """Tells whether this generation is live but was filled by another version of Foldlog.

        This version projects no further events to such a generation. An operator must rebuild it.
        """
        return self.is_live and self.fold_version != VERSIONS.get(self.projection)

    @property
    def needs_rebuild(self) -> bool:
        """Tells whether this is a live generation that an operator must rebuild.

        A rebuild is needed if another version of Foldlog filled the generation. It is also needed
        if an older version began to fill the generation without the history of the records.
        """
        return self.is_foreign or (self.is_live and not self.has_history)

    @property
    def lag(self) -> int:
        """Returns the number of events that still have to be projected to this generation."""
        return self.head - self.position


def status(datastore: Datastore, space: str | None = None) -> list[ProjectionStatus]:
    """Returns a list with the status of each generation of a space, or of all spaces (`None`).

    The list is sorted by space, projection and generation.
    """
    rows = datastore.fetch_all(SELECT_STATUS, {"space": space})
    return [ProjectionStatus(*row) for row in rows]


def checkpoints(datastore: Datastore, space: str | None = None) -> list[CheckpointStatus]:
    """Returns a list with the `CheckpointStatus` of one space, or of all spaces (`None`).

    The list contains only spaces that have a signed checkpoint or a signer error.
    """
    rows = datastore.fetch_all(SELECT_CHECKPOINTS, {"space": space})
    return [CheckpointStatus(*row) for row in rows]


def incomplete_logs(datastore: Datastore, space: str | None = None) -> list[IncompleteLog]:
    """Returns the alarm of one space, or the alarms of all spaces (`None`), as a list.

    The function counts the events of these logs, which takes a second for millions of events.
    """
    with datastore.reading() as cursor:
        rows = cursor.execute(SELECT_INCOMPLETE, {"space": space}).fetchall()
        return [
            IncompleteLog(name, alarm, since, find_holes(cursor, name))
            for name, alarm, since in rows
        ]


def unfinished_imports(datastore: Datastore, space: str | None = None) -> list[UnfinishedImport]:
    """Returns the `UnfinishedImport` of one space, or of all spaces (`None`), as a list."""
    rows = datastore.fetch_all(SELECT_IMPORTS, {"space": space})
    return [UnfinishedImport(*row) for row in rows]


def alarms(datastore: Datastore) -> dict[str, int]:
    """Returns {alarm: the number of spaces that have it}, without the alarms that no space has.

    The alarms are those of `ALARMS`; of `another-folder` the folders are counted. `foldlog status`
    names the spaces and the reasons.
    """
    return dict(datastore.fetch_all(SELECT_ALARMS))


def every_space_tokens(datastore: Datastore) -> dict[str, int]:
    """Returns {role: the number of tokens for every space that are not revoked}.

    No log has an event about such a token. The dict has the roles reader, auditor and admin.
    """
    counts: dict[str, int] = dict(datastore.fetch_all(SELECT_EVERY_SPACE_TOKENS))
    roles = (Role.READER, Role.AUDITOR, Role.ADMIN)
    return {role.value: counts.get(role.value, 0) for role in roles} | counts


def gauges(datastore: Datastore) -> list[Gauge]:
    """Returns a list of the gauges for `GET /metrics`, which are totals or maxima over all spaces.

    The gauges show the numbers of spaces, events, events without a signed checkpoint, and events
    that still have to be projected. They also show how many spaces have a halted projection, how
    many have a signer error, and how many need a rebuild. A gauge for each of `ALARMS` shows how
    many spaces have this alarm. A gauge for each role shows the tokens for every space.
    """
    params = {"projections": text_array(VERSIONS), "versions": integer_array(VERSIONS.values())}
    rows = datastore.fetch_all(SELECT_GAUGES, params)
    signing_stopped, unsigned = datastore.fetch_one(SELECT_SIGNING) or (0, 0)
    now = alarms(datastore)
    found = [
        Gauge(
            "foldlog_alarms",
            "Spaces (or folders) with this alarm.",
            now.get(alarm, 0),
            {"alarm": alarm},
        )
        for alarm in ALARMS
    ]
    found += [
        Gauge(
            "foldlog_every_space_tokens",
            "Tokens for every space that are not revoked.",
            count,
            {"role": role},
        )
        for role, count in every_space_tokens(datastore).items()
    ]
    is_first = True
    for projection, count, events, lag, lag_max, stopped, stale in rows:
        labels = {"projection": projection}
        if is_first:
            is_first = False
            found += [
                Gauge("foldlog_spaces", "Spaces.", count),
                Gauge("foldlog_events", "Events of all spaces.", float(events)),
                Gauge(
                    "foldlog_signing_stopped_spaces",
                    "Spaces whose signer has stopped.",
                    signing_stopped,
                ),
                Gauge(
                    "foldlog_unsigned_events_max",
                    "Events after the last checkpoint, in the space with the most of them.",
                    unsigned or 0,
                ),
            ]
        found += [
            Gauge("foldlog_lag_events", "Events not projected yet.", float(lag), labels),
            Gauge(
                "foldlog_lag_events_max",
                "Events not projected yet, in the space that is furthest behind.",
                lag_max,
                labels,
            ),
            Gauge("foldlog_stopped_spaces", "Spaces whose projection has halted.", stopped, labels),
            Gauge("foldlog_stale_spaces", "Spaces that need a rebuild.", stale, labels),
        ]
    return found


def heads(datastore: Datastore, spaces: Sequence[str] | None = None) -> dict[str, int]:
    """Returns {space: head} for the given spaces, or for all spaces if `spaces` is `None`.

    The longest log comes first. A given space that is unknown gets the head 0 and comes last.
    """
    params = {"spaces": None if spaces is None else list(spaces)}
    found: dict[str, int] = dict(datastore.fetch_all(SELECT_HEADS, params))
    return found | {space: 0 for space in spaces or () if space not in found}
