"""Conflicts in which this device took part: its values that lost, and values that lost to it."""

from __future__ import annotations

import msgspec

from foldlog.domain.merge import Conflict, conflict_document

from .database import Database


class Conflicts:
    """The conflicts, numbered in the order in which they were found."""

    def __init__(self, database: Database):
        self._database = database

    def add(self, conflict: Conflict) -> None:
        document = msgspec.json.encode(conflict_document(conflict)).decode()
        with self._database.transaction() as db:
            db.execute("INSERT INTO conflicts (document) VALUES (?)", (document,))

    def select_after(self, number: int) -> list[tuple[int, str]]:
        """Returns (number, JSON document) of each conflict after `number`."""
        return self._database.connection.execute(
            "SELECT number, document FROM conflicts WHERE number > ? ORDER BY number", (number,)
        ).fetchall()
