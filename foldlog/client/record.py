"""A record as an app sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The values of `Record.sync_status`.
SYNCED, WAITING, TEMPORARY = 0, 1, 2


@dataclass(frozen=True)
class Record:
    """A record at the moment when it was read. Later changes leave this object as it is.

    milk = tasks["019a..."]
    milk["title"], milk.get("done", False), milk.sync_status
    """

    #: the collection of the record
    collection: str
    #: unique within the collection, 1 to 128 characters
    id: str
    #: the values of the record, by field name
    fields: Mapping[str, Any] = field(repr=True)
    #: whether this is a tombstone: the record was deleted
    is_deleted: bool = False
    #: RFC 3339: when the server received the last change; `None` before the first sync
    last_modified: str | None = None
    #: `SYNCED` (0), `WAITING` (1, a change is still to be sent) or `TEMPORARY` (2, local only)
    sync_status: int = SYNCED
    #: the seq of the event that changed the record last; 0 before the first sync
    seq: int = 0

    def __getitem__(self, name: str) -> Any:
        """Returns the value of a field. Raises `KeyError` if the record lacks the field."""
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a field, or `default` if the record lacks the field."""
        return self.fields.get(name, default)
