"""Removes the values of erased records from the queue, the sent changesets and the conflicts in a
replica's file.

An operator can erase a record on the server. When the device receives this erasure, `fold` removes
the values from the record, and this module removes the other copies of the values. A queued
changeset stays in the queue and keeps its id and its counter, but its operation on the erased
record loses the values. If the device sends this changeset a second time, the server recognises the
changeset by its id.
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
    """Returns a copy of the operation in which the values are removed and the field `erased` is
    set. This field marks the operation as erased.

    In the server's log, `erased` contains the hash of the erased values. Here, `erased` is an empty
    text, because the device does not know the hash.
    """
    return Operation(op.op, op.collection, op.id, erased="")


def to_wire(op: Operation) -> Operation:
    """Returns the operation in the form that is sent to the server. An erased operation is sent
    as a delete, because its values are gone.

    If the server knows about the erasure, it stores the operation as erased. If the server has
    lost the erasure (for example after a restore from a backup), the delete removes the record.
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
        """Removes the old values of the record `key` from the replica's file, because an operator
        has erased the record. `seq` is the seq of the event of this erasure.

        The method removes the values from the operations that were made before the erasure, in the
        queue and in the sent changesets. It also deletes the older conflicts of the record.
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
            self._meta.set(scrub="file")

    def scrub(self) -> None:
        """Removes the bytes of erased values from the free space of the file, and then from
        SQLite's write-ahead log, if a record was erased since the last successful call.

        The client calls this method after each sync. If another connection is using the file,
        the bytes stay, and the call after the next sync goes on.
        """
        left = self._meta.get("scrub")
        if left is None:
            return
        if left != "log":
            if not self._database.rewrite():
                return
            self._meta.set(scrub="log")
        if self._database.empty_log():
            self._meta.set(scrub=None)
