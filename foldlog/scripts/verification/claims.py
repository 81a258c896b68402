"""Collects the root hashes that checkpoints state for a log, to compare them with computed
roots.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from foldlog.domain.notes import (
    NOTE_BYTES_MAX,
    Checkpoint,
    InvalidNote,
    Verifier,
    log_of,
    open_checkpoint,
)


class Wrong(Exception):
    """Raised when the verification finds that the log contradicts a checkpoint, a tile or the
    master table.
    """


class Claim(NamedTuple):
    """The root hash that a checkpoint states for the first events of a log."""

    root: bytes
    source: str  #: "the signed checkpoint" or "the kept checkpoint"


class Claims:
    """Collects the claims of all checkpoints. A claim is the root hash that a checkpoint states for
    the first N events of a log.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, list[Claim]] = {}
        self.proven = 0  #: the largest number of events whose root was confirmed
        #: the first claim that another root contradicts, with its number of events
        self.contradicted: tuple[int, Claim] | None = None

    def add(self, checkpoint: Checkpoint, source: str, *, head: int) -> None:
        """Adds the root hash that a checkpoint states. `source` names the checkpoint in error
        messages. Raises `Wrong` if the checkpoint covers more than `head` events.
        """
        if checkpoint.size > head:
            raise Wrong(f"the log ends at seq {head}; {source} has {checkpoint.size}")
        self._by_size.setdefault(checkpoint.size, []).append(Claim(checkpoint.root, source))

    def sizes_between(self, start: int, end: int) -> list[int]:
        """Returns a sorted list of the numbers of events for which checkpoints state a root hash.

        The list contains only the numbers greater than `start` and less than `end`.
        """
        return sorted(size for size in self._by_size if start < size < end)

    def compare(self, size: int, root: bytes) -> None:
        """Compares the root hashes that checkpoints state for the first `size` events with
        the computed root. Removes the claims that were compared.

        The first claim with another root is kept in `contradicted`. It is not raised at once,
        because the rest of the log may show which event was changed.
        """
        for claim in self._by_size.pop(size, ()):
            if claim.root == root:
                self.proven = max(self.proven, size)
            elif self.contradicted is None:
                self.contradicted = size, claim

    def remaining(self) -> list[tuple[int, Claim]]:
        """Returns the claims that are still to be compared, as a list of pairs. Each pair contains
        the number of events that the checkpoint covers, and the claim.
        """
        return [(size, claim) for size, claims in self._by_size.items() for claim in claims]


def read_note(path: Path) -> bytes:
    """Returns the content of a file with a checkpoint. Reads at most one byte more than a note can
    have, because the file may be another one."""
    with path.open("rb") as file:
        return file.read(NOTE_BYTES_MAX + 1)


def checked_checkpoint(
    note: bytes, keys: list[Verifier], name: str, *, log: str, space: str | None = None
) -> Checkpoint:
    """Parses a checkpoint and checks its signature, and that it belongs to the log with the id
    `log`. Returns the checkpoint.

    If `space` is given, the checkpoint must also name this space. Raises `Wrong` if the signature
    is invalid, or the checkpoint belongs to another log or space. `name` is a phrase for the
    checkpoint at the start of the error message, such as "the checkpoint".
    """
    try:
        checkpoint, _ = open_checkpoint(note, keys)
    except InvalidNote as exc:
        raise Wrong(f"{name}: {exc}") from exc
    if log_of(checkpoint.origin) != log:
        raise Wrong(f"{name} is of the log {checkpoint.origin}, not of {log}")
    if space is not None and not checkpoint.origin.endswith(f"/spaces/{space}/{log}"):
        raise Wrong(f"{name} is of {checkpoint.origin}, not of the space {space}")
    return checkpoint
