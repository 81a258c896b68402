"""The results of a sync, and of a page of the live channel."""

from __future__ import annotations

from enum import Enum

import msgspec

from foldlog.domain.merge import Conflict, Key


class SyncResult(msgspec.Struct):
    """What one sync has done: counts of changesets and events, and the affected records."""

    #: changesets sent
    pushed: int = 0
    #: events received
    pulled: int = 0
    #: (collection, id) of the records whose shown values changed
    changed: list[Key] = []
    #: ids of changesets that were refused or rejected
    refused: list[str] = []
    #: conflicts in which this device took part
    conflicts: list[Conflict] = []
    #: problem codes of the faults that were healed
    healed: list[str] = []


class PageResult(Enum):
    """The result of applying a page of the live channel."""

    APPLIED = "the page began at the cursor, and was applied"
    DUPLICATE = "the cursor had passed the page"
    OVERLAPS = "the cursor had passed a part of the page"
    NEEDS_SYNC = "the page does not fit, and a sync must find out why"
