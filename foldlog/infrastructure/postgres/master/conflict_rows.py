"""Converts conflicts to rows of the table `conflicts`, the conflict ledger, and completes them.

A large value stays in the log: the side of the conflict then has `logged`, its place, in place of
`value`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from foldlog.domain.json_reader import decoder
from foldlog.domain.merge import Conflict, conflict_document
from foldlog.domain.values import LoggedValue
from foldlog.infrastructure.postgres.connection.arrays import (
    Array,
    bigint_array,
    bytea_array,
    integer_array,
    json_array,
    text_array,
    uuid_array,
)
from foldlog.infrastructure.postgres.log.values import Wanted

from .assembly import Source, read_within
from .stored_form import Place

INSERT_CONFLICTS = """
INSERT INTO conflicts (
           space, generation, seq, number, collection, id, entry, field, lost_by, won_by
       )
SELECT %(space)s, %(generation)s, seq, number, collection, id, entry, field, lost_by, won_by
  FROM unnest(
           %(seqs)s::bigint[], %(numbers)s::integer[],
           %(collections)s::text[], %(ids)s::text[], %(documents)s::json[],
           %(fields)s::bytea[], %(losers)s::uuid[], %(winners)s::uuid[]
       ) AS new (seq, number, collection, id, entry, field, lost_by, won_by)
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
        document = stored_document(conflict)
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


def stored_document(conflict: Conflict) -> bytes:
    """Returns the column `entry` of a conflict."""
    document = conflict_document(conflict)
    for side in (document["lost"], document["won"]):
        value = side.get("value")
        if type(value) is LoggedValue:
            del side["value"]
            side["logged"] = value.seq, value.op, value.size
    return msgspec.json.encode(document)


class _Side(msgspec.Struct):
    value: msgspec.Raw | UnsetType = UNSET
    seq: int = 0
    device: str | None = None
    logged: Place | UnsetType = UNSET


class _Row(msgspec.Struct):
    seq: int
    op: str
    collection: str
    id: str
    field: str
    rule: str
    lost: _Side
    won: _Side


_decode = decoder(_Row).decode


def complete_conflicts(source: Source, rows: Sequence[Any], bytes_max: int) -> list[Any]:
    """Returns the first of these rows, as many as come to `bytes_max` bytes with their values, and
    at least one. Each row ends with the column `document`."""
    opened: list[_Row | None] = []
    wanted: list[dict[Wanted, int]] = []
    for *_, document in rows:
        row = _decode(document) if b'"logged":' in document else None
        opened.append(row)
        sides = [] if row is None else [row.lost, row.won]
        wanted.append(
            {
                Wanted(side.logged[0], side.logged[1], row.field): side.logged[2]
                for side in sides
                if row is not None and side.logged is not UNSET
            }
        )
    if not any(wanted):
        return list(rows)
    values, count = read_within(source, wanted, bytes_max)
    completed = []
    for row, (*place, document) in zip(opened[:count], rows, strict=False):
        if row is not None:
            for side in (row.lost, row.won):
                if side.logged is not UNSET:
                    side.value = values[Wanted(side.logged[0], side.logged[1], row.field)]
                    side.logged = UNSET
            document = msgspec.json.encode(row)
        completed.append((*place, document))
    return completed
