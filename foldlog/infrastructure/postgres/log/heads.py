"""Reads the head of a log, which is the seq of its last event."""

from __future__ import annotations

from typing import Any

from psycopg import Cursor

from foldlog.domain.errors import UnknownSpace

SELECT_HEAD = """
SELECT head
  FROM spaces
 WHERE space = %(space)s
"""


def select_head(cursor: Cursor[Any], space: str) -> int:
    """Returns the head of a space: the seq of its last event, or 0 for an empty log.

    Raises `UnknownSpace` if the database has no such space.
    """
    row = cursor.execute(SELECT_HEAD, {"space": space}, prepare=True).fetchone()
    if row is None:
        raise UnknownSpace(space)
    return int(row[0])
