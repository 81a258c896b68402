"""Reads the head of a log, which is the seq of its last event."""

from __future__ import annotations

from typing import Any

from psycopg import Cursor

from foldlog.domain.errors import FoldlogError, SpaceImporting, UnknownSpace

SELECT_HEAD = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
   AND NOT importing
"""

SELECT_IMPORTING = """
SELECT importing
  FROM spaces
 WHERE space = %(space)s
"""


def select_head(cursor: Cursor[Any], space: str) -> int:
    """Returns the head of a space: the seq of its last event, or 0 for an empty log.

    Raises `UnknownSpace` if the database has no such space, and `SpaceImporting` if the space is
    still being imported.
    """
    row = cursor.execute(SELECT_HEAD, {"space": space}, prepare=True).fetchone()
    if row is None:
        raise absent(cursor, space)
    return int(row[0])


def absent(cursor: Cursor[Any], space: str) -> FoldlogError:
    """Returns the error for a space that a statement did not find: `SpaceImporting` if the space is
    being imported, and otherwise `UnknownSpace`.

    Statements leave out a space that is being imported, so only this way out asks for the reason.
    """
    return SpaceImporting(space) if is_importing(cursor, space) else UnknownSpace(space)


def is_importing(cursor: Cursor[Any], space: str) -> bool:
    """Returns whether the space is being imported. Returns `False` for a missing space."""
    row = cursor.execute(SELECT_IMPORTING, {"space": space}).fetchone()
    return row is not None and bool(row[0])
