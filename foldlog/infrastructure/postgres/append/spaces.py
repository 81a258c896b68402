"""Creates and locks the row of a space in the table `spaces`."""

from __future__ import annotations

from typing import Any

from psycopg import Cursor
from psycopg.rows import TupleRow

from foldlog.domain.errors import SpaceImporting
from foldlog.domain.space_state import SpaceState
from foldlog.infrastructure.postgres.connection.arrays import integer_array, text_array
from foldlog.infrastructure.postgres.log.alarms import SuspectedHole, incomplete
from foldlog.infrastructure.postgres.log.heads import absent, is_importing
from foldlog.infrastructure.postgres.projections import VERSIONS

CREATE_SPACE = """
INSERT INTO spaces (space)
VALUES (%(space)s)
    ON CONFLICT (space) DO NOTHING
RETURNING space
"""

CREATE_PROJECTIONS = """
INSERT INTO projections (space, projection, generation, is_live, fold_version)
SELECT %(space)s, projection, 1, true, fold_version
  FROM unnest(%(projections)s::text[], %(versions)s::integer[]) AS new (projection, fold_version)
RETURNING generation
"""

LOCK_SPACE = """
SELECT log::text, head, mark, received_at_ms, erased_seq, alarm
  FROM spaces
 WHERE space = %(space)s
   AND NOT importing
   FOR UPDATE
"""

# This is a statement of its own, because it must see all events that were committed before the
# lock.
SELECT_LAST = """
SELECT coalesce(max(originator_version), 0)
  FROM events
 WHERE originator_id = %(space)s
"""

# This is a statement of its own, because one statement would read the clock before it has waited
# for the lock.
SELECT_NOW = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"


def create_space(cursor: Cursor[Any], space: str) -> bool:
    """Creates a space with its projections, and returns `True`.

    Returns `False`, and leaves the database unchanged, if the space already exists. Raises
    `SpaceImporting` if the space is being imported.
    """
    if cursor.execute(CREATE_SPACE, {"space": space}).fetchone() is None:
        if is_importing(cursor, space):
            raise SpaceImporting(space)
        return False
    create_projections(cursor, space)
    return True


def create_projections(cursor: Cursor[Any], space: str) -> None:
    """Makes the projections of a new space, or of a space whose import is whole. From then on the
    projectors and the signer work on the space."""
    params = {
        "space": space,
        "projections": text_array(VERSIONS),
        "versions": integer_array(VERSIONS.values()),
    }
    cursor.execute(CREATE_PROJECTIONS, params)


def lock_space(cursor: Cursor[Any], space: str) -> tuple[SpaceState, int]:
    """Locks the row of a space until the transaction ends.

    Returns a pair: the state of the space, and the database's time in ms since 1970. In the state,
    the members `counters`, `revoked` and `schemas` are empty. Raises `UnknownSpace` if the space is
    missing, and `SpaceImporting` if the space is being imported. Raises the errors of
    `check_whole`.
    """
    row = cursor.execute(LOCK_SPACE, {"space": space}, prepare=True).fetchone()
    if row is None:
        raise absent(cursor, space)
    *row, alarm = row
    last = cursor.execute(SELECT_LAST, {"space": space}, prepare=True).fetchone()
    check_whole(space, alarm, head=row[1], last=last)
    (now_ms,) = cursor.execute(SELECT_NOW, prepare=True).fetchone() or (0,)
    return SpaceState(*row), now_ms


def check_whole(space: str, alarm: str | None, *, head: int, last: TupleRow | None) -> None:
    """Checks that events may be appended to a locked space. `last` is the row of `SELECT_LAST`.

    Raises `LogIncomplete` if the space has an alarm. Raises `SuspectedHole` if the head is not the
    seq of the last event.
    """
    if alarm is not None:
        raise incomplete(space, alarm)
    if last != (head,):
        raise SuspectedHole(head - 1, head)
