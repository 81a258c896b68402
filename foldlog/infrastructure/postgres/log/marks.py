"""Computes marks from stored events. A mark is a short hash of a log's history up to a seq.

A reader's cursor contains the mark at the last seq that the reader has received. The service
compares this mark with the mark that it computes from its own log.
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
    """Computes the marks of events and returns {seq: mark}.

    `rows` are rows of the statement `SELECT_FOR_MARKS`. The result also contains the seq 0, whose
    mark is the empty string.
    """
    marks = {seq: proofs.mark_of(proofs.leaf_header_of(state), hash) for seq, state, hash in rows}
    return {0: "", **marks}


def mark_at(conn: Connection[Any], space: str, seq: int) -> str:
    """Reads the event with this seq and returns its mark. For seq 0 it returns the empty string.

    Raises `KeyError` if there is no event with this seq.
    """
    params = {"space": space, "seqs": [seq]}
    cursor = conn.cursor(row_factory=tuple_row)
    return marks_of(cursor.execute(SELECT_FOR_MARKS, params, prepare=True).fetchall())[seq]
