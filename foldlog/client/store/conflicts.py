"""Stores conflicts in the replica's file. In a conflict, two values of a field were written
concurrently, and the merge kept only one of them. Only conflicts in which this device wrote one of
the two values are stored.
"""

from __future__ import annotations

import msgspec

from foldlog.domain.merge import Conflict, conflict_document

from .database import Database


class Conflicts:
    """Reads and writes the table of conflicts. The conflicts are numbered in the order in which
    this device found them.
    """

    def __init__(self, database: Database):
        self._database = database

    def add(self, conflict: Conflict) -> None:
        document = msgspec.json.encode(conflict_document(conflict)).decode()
        with self._database.transaction() as db:
            db.execute("INSERT INTO conflicts (document) VALUES (?)", (document,))

    def select_after(self, number: int) -> list[tuple[int, str]]:
        """Returns a list of pairs: the number of a conflict and the conflict as JSON text. The list
        contains the conflicts whose number is greater than `number`, in ascending order.
        """
        return self._database.connection.execute(
            "SELECT number, document FROM conflicts WHERE number > ? ORDER BY number", (number,)
        ).fetchall()
