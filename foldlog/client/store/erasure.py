"""Removes the values of erased records from every copy in the file of a replica.

The fold erases the record itself. Other copies of its values are in queued changesets, in sent
changesets, and in conflicts. A changeset keeps its place in the queue and its counter; only its
operation on the erased record loses its values. The server also removes these values when it stores
the changeset, and then recognises a repeated changeset by its id alone.
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
    """Returns an erased copy of the operation, without its values.

    `erased` is an empty text, because only the server's log has the hash of the values.
    """
    return Operation(op.op, op.collection, op.id, erased="")


def to_wire(op: Operation) -> Operation:
    """Returns the operation in the form that is sent to the server. An erased operation becomes
    a delete.

    If the server knows about the erasure, it stores the operation as erased. If the server has
    lost the erasure, the delete removes the record.
    """
    return op if op.erased is UNSET else Operation("delete", op.collection, op.id)


class Erasure:
    """Removes the values of erased records from the changesets and conflicts in a replica's
    file.
    """

    def __init__(self, database: Database, meta: Meta):
        self._database = database
        self._meta = meta

    def erase(self, key: Key, seq: int) -> None:
        """Removes the values of the record `key` from all changesets and conflicts before
        event `seq`, which erased the record.
        """
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
        """Removes the bytes of erased values from SQLite's write-ahead log, if a record was
        erased before.

        If another connection is using the file, the removal is tried again after the next
        sync.
        """
        if self._meta.get("scrub") and self._database.scrub():
            self._meta.set(scrub=None)
