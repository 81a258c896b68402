"""Stores the changesets that the server has acknowledged in the last 30 days.

The device sends these changesets again if the server is restored from a backup and has lost them.
"""

from __future__ import annotations

import msgspec

from foldlog.domain.changesets import Operation

from .database import Database
from .queue import Queued, queued_from

_decode_ops = msgspec.json.Decoder(list[Operation]).decode


class Sent:
    """Reads and writes the table of changesets that the server acknowledged in the last 30
    days.
    """

    def __init__(self, database: Database):
        self._database = database

    def add(self, queued: Queued, seq: int, acknowledged_at: int) -> None:
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO sent "
                "(seq, id, counter, base, made_at, guard, ops, acknowledged_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    seq,
                    queued.id,
                    queued.counter,
                    queued.base,
                    queued.made_at,
                    queued.guard,
                    msgspec.json.encode(queued.ops).decode(),
                    acknowledged_at,
                ),
            )

    def ops_of(self, id: str) -> list[Operation] | None:
        """Returns the operations of the changeset `id`, or `None` if this changeset is
        missing in the table.
        """
        row = self._database.connection.execute(
            "SELECT ops FROM sent WHERE id = ?", (id,)
        ).fetchone()
        return None if row is None else _decode_ops(row[0])

    def pop_after(self, seq: int) -> list[Queued]:
        """Deletes the changesets whose events have a seq greater than `seq`. Returns a list of the
        deleted changesets, ordered by seq. The caller sends these changesets again.
        """
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT 0, id, counter, base, made_at, guard, ops, 'waiting', NULL, NULL "
                "FROM sent WHERE seq > ? ORDER BY seq",
                (seq,),
            ).fetchall()
            db.execute("DELETE FROM sent WHERE seq > ?", (seq,))
        return [queued_from(row) for row in rows]

    def delete_before(self, acknowledged_at: int) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM sent WHERE acknowledged_at < ?", (acknowledged_at,))
