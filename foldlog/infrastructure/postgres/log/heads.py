"""The head of a log: the seq of its last event."""

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
    """Returns the head of a space. Raises `UnknownSpace`."""
    row = cursor.execute(SELECT_HEAD, {"space": space}, prepare=True).fetchone()
    if row is None:
        raise UnknownSpace(space)
    return int(row[0])
