"""Stores the named values of a replica, for example the device id, the cursor and the traffic
counts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .database import Database


class Meta:
    """Reads and writes named values in a table of the replica's file. The values are stored as
    JSON, which keeps their types.
    """

    def __init__(self, database: Database):
        self._database = database

    def get(self, name: str, default: Any = None) -> Any:
        row = self._database.connection.execute(
            "SELECT value FROM meta WHERE name = ?", (name,)
        ).fetchone()
        return default if row is None else msgspec.json.decode(row[0])

    def set(self, **values: Any) -> None:
        """Saves each keyword argument as a named value. If an argument is `None`, deletes the value
        with this name.
        """
        with self._database.transaction() as db:
            for name, value in values.items():
                if value is None:
                    db.execute("DELETE FROM meta WHERE name = ?", (name,))
                else:
                    db.execute(
                        "INSERT INTO meta (name, value) VALUES (?, ?) "
                        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                        (name, msgspec.json.encode(value).decode()),
                    )

    def add(self, **amounts: int) -> None:
        """Adds each argument to the stored number of the same name. A missing number is
        treated as 0.
        """
        self.set(**{name: self.get(name, 0) + amount for name, amount in amounts.items()})

    @property
    def device(self) -> str:
        return str(self.get("device"))

    @property
    def own_devices(self) -> frozenset[str]:
        """The set of all device ids of this replica: the current id and the earlier ids."""
        return frozenset([self.device, *self.get("earlier_devices", [])])

    @property
    def after(self) -> int:
        """The cursor: the seq of the last event that this replica has applied, or 0."""
        return int(self.get("after", 0))

    @property
    def mark(self) -> str:
        """The server's mark (hash of the log) at the cursor, as a text; an empty text before the
        first sync.
        """
        return str(self.get("mark", ""))
