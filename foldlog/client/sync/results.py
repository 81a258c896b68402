"""Defines the result of a sync, and the result of applying a page of the live channel."""

from __future__ import annotations

from enum import Enum

import msgspec

from foldlog.domain.merge import Conflict, Key


class SyncResult(msgspec.Struct):
    """Counts and lists what one sync has done. `Replica.sync` returns this object.

    Attributes:
        pushed: The number of changesets sent.
        pulled: The number of events received.
        changed: (collection, id) of each record whose values, as the app reads them, changed.
        refused: The ids of changesets that were refused or rejected.
        conflicts: The conflicts in which this device wrote one of the values.
        healed: Codes of the problems that the device has repaired, such as "log-behind".
    """

    pushed: int = 0
    pulled: int = 0
    changed: list[Key] = []
    refused: list[str] = []
    conflicts: list[Conflict] = []
    healed: list[str] = []


class PageResult(Enum):
    """States whether a page of the live channel was applied to the local store. `APPLIED` means
    that the page was applied. The other values state why the page was left out.
    """

    APPLIED = "the page began at the cursor, and was applied"
    DUPLICATE = "the cursor had passed the page"
    OVERLAPS = "the cursor had passed a part of the page"
    NEEDS_SYNC = "the page does not fit, and a sync must find out why"
