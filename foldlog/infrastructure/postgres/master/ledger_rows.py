"""What lost, as rows of the conflict ledger."""

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

#: about so much is encoded and sent at a time
STATEMENT_BYTES = 16 * 2**20
STATEMENT_CONFLICTS = 20_000


class Ledger:
    """What lost in some events, until it is written."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._rows: list[tuple[int, Conflict, bytes]] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._rows)

    def note(self, number: int, conflict: Conflict) -> bool:
        """The conflict of that number within its event; whether a statement is full."""
        document = msgspec.json.encode(conflict_document(conflict))
        self._rows.append((number, conflict, document))
        self._size += len(document)
        return self._size >= STATEMENT_BYTES or len(self._rows) == STATEMENT_CONFLICTS

    def take(self) -> dict[str, Array]:
        """The parameters of `INSERT_CONFLICTS`, but for space and generation. Begins anew."""
        rows = self._rows
        self._begin()
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
