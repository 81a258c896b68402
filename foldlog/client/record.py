"""Defines `Record`, the object that an app gets when it reads a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The values of `Record.sync_status`.
SYNCED, WAITING, TEMPORARY = 0, 1, 2


@dataclass(frozen=True)
class Record:
    """Contains the values of a record at the time when the app read the record. If the record
    changes later, this object keeps the old values.

        milk = tasks["019a..."]
        milk["title"], milk.get("done", False), milk.sync_status

    Attributes:
        collection: The name of the record's collection.
        id: The id of the record, unique within the collection, 1 to 128 characters.
        fields: The values of the record, by field name.
        is_deleted: Whether the record was deleted. If it was, this object is the tombstone of the
            record.
        last_modified: The time when the server received the last change (RFC 3339); `None` if this
            device has not pulled any change of the record yet.
        sync_status: `SYNCED` (0), `WAITING` (1: a change of this device is still in the queue) or
            `TEMPORARY` (2: the record stays on this device).
        seq: The seq of the last event that changed the record; 0 if this device has not pulled any
            event of the record yet.
    """

    collection: str
    id: str
    fields: Mapping[str, Any]
    is_deleted: bool = False
    last_modified: str | None = None
    sync_status: int = SYNCED
    seq: int = 0

    def __getitem__(self, name: str) -> Any:
        """Returns the value of a field. Raises `KeyError` if the record lacks the field."""
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a field, or `default` if the record lacks the field."""
        return self.fields.get(name, default)
