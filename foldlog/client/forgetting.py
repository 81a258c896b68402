"""Erased records: their values leave this device too, wherever it keeps a copy.

The record itself is replaced by the fold. Beside it, values are in changesets that wait or were
sent lately, and in the conflicts that were noted. A changeset keeps its place and its counter, and
its operation on the record is kept without values: the server erases it when it stores it, and
knows the changeset by its id alone from then on.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from foldlog.domain.changesets import Operation
from foldlog.domain.merge import Key

from .database import Database, Meta

_decode_ops = msgspec.json.Decoder(list[Operation]).decode
_encode = msgspec.json.encode


def without_values(op: Operation) -> Operation:
    """What is kept of an erased operation. Its commitment only the log knows."""
    return Operation(op.op, op.collection, op.id, erased="")


def to_send(op: Operation) -> Operation:
    """An operation as it is sent. An erased one is stored erased, whatever it says; should the
    server have lost the erasure, it deletes the record."""
    return op if op.erased is UNSET else Operation("delete", op.collection, op.id)


class Forgetting:
    """Takes values out of this replica's file."""

    def __init__(self, database: Database, meta: Meta):
        self._database = database
        self._meta = meta

    def forget(self, key: Key, seq: int) -> None:
        """Event `seq` has erased a record: forgets what was said of it without seeing that."""
        with self._database.transaction() as db:
            named = {"collection": key[0], "id": key[1], "seq": seq}
            for table, condition in (
                ("queue", "base < :seq"),
                ("sent", "(seq < :seq OR base < :seq)"),
            ):
                rows = db.execute(
                    f"SELECT id, ops FROM {table} WHERE {condition} AND instr(ops, :encoded) > 0",
                    {**named, "encoded": _encode(key[1]).decode()},
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
                named,
            )
            self._meta.set(scrub=True)

    def scrub(self) -> None:
        """Has nothing of it stay in the file, or beside it in the write-ahead log.

        If somebody reads just now, the next sync tries again.
        """
        if self._meta.get("scrub") and self._database.scrub():
            self._meta.set(scrub=None)
