"""The sync status of a replica."""

from __future__ import annotations

from dataclasses import dataclass

from .callbacks import Refusal

#: plain words for frequent problem codes; other problems are shown with their `detail`
_WORDS = {
    "unreachable": "the server cannot be reached",
    "unauthenticated": "the server does not accept the sign-in: sign in again",
    "forbidden": "this sign-in does not allow the device to use the space",
    "device-revoked": "this device was revoked: it can join again with a new replica",
}


@dataclass(frozen=True)
class Status:
    """The sync status of a replica at one moment. `Replica.status` returns it."""

    #: the id of this device, and the name of the space
    device: str
    space: str
    #: changesets that are still to be sent
    unsent: int
    #: changesets that the server has stored, and whose events have not arrived yet
    unacknowledged: int
    #: changesets that wait for `Replica.repair` or `Replica.drop`
    refused: list[Refusal]
    #: the cursor: the seq of the last event that this device has applied
    after: int
    #: the seq of the last event of the log, as far as the server has told this device
    head: int
    #: time of the last successful sync, in ms since 1970, by the clock of this device
    last_sync_ms: int | None
    #: `code` and `detail` of the problem of the last sync; `None` if it succeeded
    problem: dict[str, str] | None
    #: whether the background thread runs
    is_syncing: bool
    #: whether this process has the live channel open
    live: bool
    #: seconds until the next sync of the background thread
    next_try_seconds: float | None
    #: records of a snapshot that is being loaded: loaded, total
    snapshot_progress: tuple[int, int] | None
    #: all requests of this replica, and the bytes of their bodies as sent and received
    requests: int
    bytes_sent: int
    bytes_received: int

    @property
    def lag(self) -> int:
        """The number of events that the log has and this device lacks, as far as it knows."""
        return max(0, self.head - self.after)

    @property
    def why_not(self) -> str | None:
        """The reason why syncing fails, in words for the user; `None` if it works."""
        if self.problem is None:
            return None
        return _WORDS.get(self.problem["code"], self.problem["detail"])
