"""Computes marks from stored events. The service checks the marks in readers' cursors against them.

A mark is a short hash of a log's history up to a seq.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import Connection
from psycopg.rows import tuple_row

from foldlog.domain import proofs

SELECT_FOR_MARKS = """
SELECT originator_version, state, ops_hash
  FROM events
 WHERE originator_id = %(space)s
   AND originator_version = ANY(%(seqs)s::bigint[])
 ORDER BY originator_version
"""


def marks_of(rows: Iterable[tuple[int, bytes, bytes]]) -> dict[int, str]:
    """Returns {seq: mark} for rows of `SELECT_FOR_MARKS`, and the empty mark for seq 0."""
    marks = {seq: proofs.mark_of(proofs.leaf_header_of(state), hash) for seq, state, hash in rows}
    return {0: "", **marks}


def mark_at(conn: Connection[Any], space: str, seq: int) -> str:
    """Reads the event at `seq` and returns its mark. For seq 0 the mark is empty.

    Raises `KeyError` if there is no event with this seq.
    """
    params = {"space": space, "seqs": [seq]}
    cursor = conn.cursor(row_factory=tuple_row)
    return marks_of(cursor.execute(SELECT_FOR_MARKS, params, prepare=True).fetchall())[seq]
