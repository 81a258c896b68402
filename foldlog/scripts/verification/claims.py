"""The roots that checkpoints claim for a log, at certain sizes."""

from __future__ import annotations

from typing import NamedTuple

from foldlog.domain.notes import Checkpoint, InvalidNote, Verifier, log_of, open_checkpoint


class Wrong(Exception):
    """The verification found a contradiction."""


class Claim(NamedTuple):
    """The root of the first events of a log, as a checkpoint states it."""

    root: bytes
    source: str  #: "the signed checkpoint" or "the kept checkpoint"


class Claims:
    """The claims of all checkpoints, by the number of events."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[Claim]] = {}

    def add(self, checkpoint: Checkpoint, source: str, *, head: int) -> None:
        """Adds a checkpoint. Raises `Wrong` if the log is shorter than the checkpoint."""
        if checkpoint.size > head:
            raise Wrong(f"the log ends at seq {head}; {source} has {checkpoint.size}")
        self._by_size.setdefault(checkpoint.size, []).append(Claim(checkpoint.root, source))

    def sizes_between(self, start: int, end: int) -> list[int]:
        """Returns the claimed sizes with `start < size < end`, sorted."""
        return sorted(size for size in self._by_size if start < size < end)

    def compare(self, size: int, root: bytes) -> None:
        """Compares and removes the claims of this size. Raises `Wrong` if a root differs."""
        for claim in self._by_size.pop(size, ()):
            if claim.root != root:
                raise Wrong(f"the first {size} events have another root than {claim.source} says")

    def remaining(self) -> list[tuple[int, Claim]]:
        """Returns the claims that are still to be compared, with their sizes."""
        return [(size, claim) for size, claims in self._by_size.items() for claim in claims]


def checked_checkpoint(note: bytes, keys: list[Verifier], name: str, *, log: str) -> Checkpoint:
    """Checks the signature and the log of a checkpoint. Raises `Wrong`."""
    try:
        checkpoint, _ = open_checkpoint(note, keys)
    except InvalidNote as exc:
        raise Wrong(f"{name}: {exc}") from exc
    if log_of(checkpoint.origin) != log:
        raise Wrong(f"{name} is of the log {checkpoint.origin}, not of {log}")
    return checkpoint
