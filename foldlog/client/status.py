"""Defines `Status`, which describes the progress and the problems of syncing a replica."""

from __future__ import annotations

from dataclasses import dataclass

from .callbacks import Refusal

#: plain words for frequent problem codes; other problems are shown with their `detail`
_WORDS = {
    "unreachable": "the server cannot be reached",
    "not-foldlog": "another server answered: sign in to the network, or check the URL",
    "unauthenticated": "the server does not accept the sign-in: sign in again",
    "forbidden": "this sign-in does not allow the device to use the space",
    "device-revoked": "this device was revoked: it can join again with a new replica",
}


@dataclass(frozen=True)
class Status:
    """Describes the progress and the problems of syncing at one moment. `Replica.status`
    returns it.

    Attributes:
        device: The id of this device.
        space: The name of the space.
        unsent: The number of changesets that are still to be sent.
        unacknowledged: The number of changesets that the server has stored, and whose events this
            device has not pulled yet.
        refused: A list of the changesets that the server has refused or rejected (see `Refusal`).
            The app handles each one with `Replica.repair` or `Replica.drop`.
        after: The cursor: the seq of the last event that this device has applied.
        head: The seq of the last event of the log, from the server's last answer.
        last_sync_ms: The time of the last successful sync in ms since 1970, by the clock of this
            device; `None` before the first one.
        problem: The `code` and `detail` of the problem of the last sync; `None` if it succeeded.
        is_syncing: Whether the background thread runs.
        live: Whether this process has the live channel open.
        next_try_seconds: The seconds until the next sync of the background thread; `None`
            during a sync, or if the thread is stopped.
        snapshot_progress: The number of records loaded so far and the total number, while a
            snapshot is being loaded; otherwise `None`.
        requests: The number of requests since the replica was created.
        bytes_sent: The bytes of all request bodies, as sent (compressed).
        bytes_received: The bytes of all response bodies, as received (compressed).
    """

    device: str
    space: str
    unsent: int
    unacknowledged: int
    refused: list[Refusal]
    after: int
    head: int
    last_sync_ms: int | None
    problem: dict[str, str] | None
    is_syncing: bool
    live: bool
    next_try_seconds: float | None
    snapshot_progress: tuple[int, int] | None
    requests: int
    bytes_sent: int
    bytes_received: int

    @property
    def lag(self) -> int:
        """The number of events that this device still has to pull: the difference between `head`
        and `after`. The log may have grown since the server's last answer.
        """
        return max(0, self.head - self.after)

    @property
    def why_not(self) -> str | None:
        """The reason why the last sync failed, in words for the user; `None` if the last
        sync succeeded.
        """
        if self.problem is None:
            return None
        return _WORDS.get(self.problem["code"], self.problem["detail"])
