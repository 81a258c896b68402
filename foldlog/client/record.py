"""A record as an app sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The values of `Record.sync_status`.
SYNCED, WAITING, TEMPORARY = 0, 1, 2


@dataclass(frozen=True)
class Record:
    """A record at the moment when it was read. Later changes leave this object as it is.

        milk = tasks["019a..."]
        milk["title"], milk.get("done", False), milk.sync_status

    Attributes:
        collection: The collection of the record.
        id: The id, unique within the collection, 1 to 128 characters.
        fields: The values of the record, by field name.
        is_deleted: Whether this is a tombstone: the record was deleted.
        last_modified: When the server received the last change (RFC 3339); `None` before that.
        sync_status: `SYNCED` (0), `WAITING` (1: a change is still to be sent) or `TEMPORARY`
            (2: the record stays on this device).
        seq: The seq of the event that changed the record last; 0 before the first sync.
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
