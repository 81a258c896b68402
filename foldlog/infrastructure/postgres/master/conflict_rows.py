"""Collects conflicts and converts them to rows for the table `conflicts`, the conflict ledger."""

from __future__ import annotations

import msgspec

from foldlog.domain.merge import Conflict, conflict_document
from foldlog.infrastructure.postgres.connection.arrays import (
    Array,
    bigint_array,
    bytea_array,
    integer_array,
    json_array,
    text_array,
    uuid_array,
)

INSERT_CONFLICTS = """
INSERT INTO conflicts (
           space, generation, seq, number, collection, id, document, field, lost_by, won_by
       )
SELECT %(space)s, %(generation)s, seq, number, collection, id, document, field, lost_by, won_by
  FROM unnest(
           %(seqs)s::bigint[], %(numbers)s::integer[],
           %(collections)s::text[], %(ids)s::text[], %(documents)s::json[],
           %(fields)s::bytea[], %(losers)s::uuid[], %(winners)s::uuid[]
       ) AS new (seq, number, collection, id, document, field, lost_by, won_by)
RETURNING seq
"""

#: the size of one INSERT; its last conflict may exceed it
STATEMENT_BYTES = 16 * 2**20
STATEMENT_CONFLICTS = 20_000


class ConflictRows:
    """Collects conflicts, and returns them as the parameters of INSERT statements.

    Call `add` for each conflict. When `add` returns `True`, call `take`, and run the statement
    `INSERT_CONFLICTS` with the result. After the last conflict, call `take` and run the statement
    again if `len` shows that conflicts are left.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._rows: list[tuple[int, Conflict, bytes]] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, number: int, conflict: Conflict) -> bool:
        """Adds a conflict. `number` is its place among the conflicts of the same event, from 0.

        Returns `True` if enough conflicts are collected for one INSERT statement. The caller should
        then call `take` and run the statement.
        """
        document = msgspec.json.encode(conflict_document(conflict))
        self._rows.append((number, conflict, document))
        self._size += len(document)
        return self._size >= STATEMENT_BYTES or len(self._rows) == STATEMENT_CONFLICTS

    def take(self) -> dict[str, Array]:
        """Removes all collected conflicts, and returns them as parameters of `INSERT_CONFLICTS`.

        The caller must add the parameters `space` and `generation`.
        """
        rows = self._rows
        self._clear()
        return {
            "seqs": bigint_array(conflict.seq for _, conflict, _ in rows),
            "numbers": integer_array(number for number, _, _ in rows),
            "collections": text_array(conflict.collection for _, conflict, _ in rows),
            "ids": text_array(conflict.id for _, conflict, _ in rows),
            "documents": json_array(document for _, _, document in rows),
            "fields": bytea_array(conflict.field.encode() for _, conflict, _ in rows),
            "losers": uuid_array(conflict.lost.device for _, conflict, _ in rows),
            "winners": uuid_array(conflict.won.device for _, conflict, _ in rows),
        }
