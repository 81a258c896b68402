"""Erasure: the values of an erased record leave every copy on this device.

The fold replaces the record itself. Other copies of its values are in queued changesets, in
recently sent changesets, and in conflicts. A changeset keeps its position and its counter, and its
operation on the record stays without values. The server erases that operation as well when it
stores the changeset, and afterwards compares the changeset by its id alone.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from foldlog.domain.changesets import Operation
from foldlog.domain.merge import Key

from .database import Database
from .meta import Meta

_decode_ops = msgspec.json.Decoder(list[Operation]).decode
_encode = msgspec.json.encode


def without_values(op: Operation) -> Operation:
    """Returns the operation without its values. `erased` is empty: only the log has the hash."""
    return Operation(op.op, op.collection, op.id, erased="")


def to_wire(op: Operation) -> Operation:
    """Returns the operation to send. An erased operation is sent as a delete.

    The server stores it as erased in any case. If the server has lost the erasure, the delete
    removes the record.
    """
    return op if op.erased is UNSET else Operation("delete", op.collection, op.id)


class Erasure:
    """Erases values in the file of a replica."""

    def __init__(self, database: Database, meta: Meta):
        self._database = database
        self._meta = meta

    def erase(self, key: Key, seq: int) -> None:
        """Applies the erasure of event `seq` to the changesets that were made before it."""
        params = {"collection": key[0], "id": key[1], "seq": seq}
        with self._database.transaction() as db:
            for table, condition in (
                ("queue", "base < :seq"),
                ("sent", "(seq < :seq OR base < :seq)"),
            ):
                rows = db.execute(
                    f"SELECT id, ops FROM {table} WHERE {condition} AND instr(ops, :encoded) > 0",
                    {**params, "encoded": _encode(key[1]).decode()},
                ).fetchall()
                for id, ops in rows:
                    kept = [without_values(op) if op.key == key else op for op in _decode_ops(ops)]
                    db.execute(
                        f"UPDATE {table} SET ops = ? WHERE id = ?", (_encode(kept).decode(), id)
                    )
            db.execute(
                "DELETE FROM conflicts WHERE json_extract(document, '$.seq') < :seq "
                "AND json_extract(document, '$.collection') = :collection "
                "AND json_extract(document, '$.id') = :id",
                params,
            )
            self._meta.set(scrub=True)

    def scrub(self) -> None:
        """Removes erased bytes from the file and its write-ahead log.

        If another connection is reading, the next sync tries again.
        """
        if self._meta.get("scrub") and self._database.scrub():
            self._meta.set(scrub=None)
