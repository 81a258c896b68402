"""Stores the conflicts in which this device wrote the losing or the winning value."""

from __future__ import annotations

import msgspec

from foldlog.domain.merge import Conflict, conflict_document

from .database import Database


class Conflicts:
    """Reads and writes the stored conflicts. Each conflict gets a number, in the order in which
    this device found them.
    """

    def __init__(self, database: Database):
        self._database = database

    def add(self, conflict: Conflict) -> None:
        document = msgspec.json.encode(conflict_document(conflict)).decode()
        with self._database.transaction() as db:
            db.execute("INSERT INTO conflicts (document) VALUES (?)", (document,))

    def select_after(self, number: int) -> list[tuple[int, str]]:
        """Returns the number and the JSON document of each conflict whose number is greater
        than `number`.
        """
        return self._database.connection.execute(
            "SELECT number, document FROM conflicts WHERE number > ? ORDER BY number", (number,)
        ).fetchall()
