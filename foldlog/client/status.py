"""How it stands with syncing: told, not guessed."""

from __future__ import annotations

from dataclasses import dataclass

from .callbacks import Refusal

#: Why nothing moves, in words for a person; other problems speak for themselves.
_WORDS = {
    "unreachable": "the server cannot be reached",
    "unauthenticated": "the server wants to know who you are: sign in again",
    "forbidden": "the server does not let this device in",
    "device-revoked": "this device was revoked: it may come back under a new id",
}


@dataclass(frozen=True)
class Status:
    """A moment of a replica. Counts are changesets, byte counts are bodies as they travelled."""

    device: str
    space: str
    unsent: int
    unacknowledged: int  #: stored by the server, but not come back yet
    refused: list[Refusal]
    after: int  #: the cursor: the last seq that this device has
    head: int  #: the last seq that the server told of
    last_sync_ms: int | None  #: ms since 1970, when an answer was applied last
    problem: dict[str, str] | None
    is_syncing: bool  #: whether it is kept in sync in the background
    live: bool  #: whether the server tells what is new as it comes; else it is asked now and then
    next_try_seconds: float | None
    snapshot_progress: tuple[int, int] | None  #: records loaded, and all of them
    requests: int
    bytes_sent: int
    bytes_received: int

    @property
    def lag(self) -> int:
        """Events that the server told of and this device lacks."""
        return max(0, self.head - self.after)

    @property
    def why_not(self) -> str | None:
        """Why it is not in sync, or `None` if nothing is in the way."""
        if self.problem is None:
            return None
        return _WORDS.get(self.problem["code"], self.problem["detail"])
