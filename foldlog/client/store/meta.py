"""The named values of a replica: device, cursor, counters and traffic."""

from __future__ import annotations

from typing import Any

import msgspec

from .database import Database


class Meta:
    """Reads and writes the named values. They are stored as JSON, which keeps their types."""

    def __init__(self, database: Database):
        self._database = database

    def get(self, name: str, default: Any = None) -> Any:
        row = self._database.connection.execute(
            "SELECT value FROM meta WHERE name = ?", (name,)
        ).fetchone()
        return default if row is None else msgspec.json.decode(row[0])

    def set(self, **values: Any) -> None:
        """Writes values. `None` removes a value."""
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
        """Adds to values that are numbers. A missing value counts as 0."""
        self.set(**{name: self.get(name, 0) + amount for name, amount in amounts.items()})

    @property
    def device(self) -> str:
        return str(self.get("device"))

    @property
    def own_devices(self) -> frozenset[str]:
        """The ids of this device: the current one, and those before it was restored."""
        return frozenset([self.device, *self.get("earlier_devices", [])])

    @property
    def after(self) -> int:
        """The cursor: the seq of the last event that this replica has applied."""
        return int(self.get("after", 0))

    @property
    def mark(self) -> str:
        """The server's mark of the log at the cursor."""
        return str(self.get("mark", ""))
