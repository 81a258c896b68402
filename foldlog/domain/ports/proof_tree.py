"""The port to the Merkle trees and checkpoints that proofs are made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from .. import merkle
from ..errors import BeyondTree
from .event_store import SpaceId


class TreeHead(NamedTuple):
    """The current tree over a log: the log's id and the number of leaves."""

    log: str
    size: int


class InclusionProof(NamedTuple):
    """Proves that the event `seq` is in the tree of `size`."""

    log: str
    seq: int
    size: int
    root: bytes
    path: list[bytes]


class ConsistencyProof(NamedTuple):
    """Proves that the tree of size `new` begins with the tree of size `old`."""

    log: str
    old: int
    new: int
    old_root: bytes
    new_root: bytes
    path: list[bytes]


class ProofTree(ABC):
    """The tree over each log, as tiles, and the signed checkpoints of it.

    The tree follows the log with a short delay.
    """

    @abstractmethod
    def tree(self, space: SpaceId) -> TreeHead:
        """The current tree of the space. Raises `UnknownSpace`."""

    @abstractmethod
    def tiles(self, space: SpaceId, wanted: Sequence[merkle.Tile]) -> dict[merkle.Tile, bytes]:
        """The hashes of these tiles, at least as many as the tree of `tree(space)` has."""

    @abstractmethod
    def checkpoint(self, space: SpaceId) -> bytes:
        """The checkpoint that was published last, as a signed note. Raises `NoCheckpoint`."""

    @abstractmethod
    def publish(self, space: SpaceId, log: str, size: int, note: bytes) -> None:
        """Publishes a checkpoint, if `log` is still the space's log.

        The signer decides whether it may be published; this method trusts the signer.
        """

    def inclusion(self, space: SpaceId, seq: int, size: int | None = None) -> InclusionProof:
        """Proves that event `seq` is in the tree of `size` (default: the current one).

        Raises `BeyondTree`.
        """
        head = self._head(space, size)
        if not 1 <= seq <= head.size:
            raise BeyondTree(f"a tree of {head.size} has no event {seq}")
        spans = [merkle.Span(0, head.size), *merkle.inclusion_spans(seq - 1, head.size)]
        root, *path = merkle.hashes_of(spans, lambda wanted: self.tiles(space, wanted))
        return InclusionProof(head.log, seq, head.size, root, path)

    def consistency(self, space: SpaceId, old: int, new: int | None = None) -> ConsistencyProof:
        """Proves that the tree of `new` (default: the current one) begins with the tree of `old`.

        Raises `BeyondTree`.
        """
        head = self._head(space, new)
        if not 0 <= old <= head.size:
            raise BeyondTree(f"a tree of {head.size} does not begin with one of {old}")
        spans = merkle.consistency_spans(old, head.size)
        both = [merkle.Span(0, old), merkle.Span(0, head.size), *spans]
        old_root, new_root, *path = merkle.hashes_of(both, lambda wanted: self.tiles(space, wanted))
        return ConsistencyProof(head.log, old, head.size, old_root, new_root, path)

    def _head(self, space: SpaceId, size: int | None) -> TreeHead:
        head = self.tree(space)
        if size is None:
            return head
        if size > head.size:
            raise BeyondTree(f"the tree has {head.size} events so far", size=head.size)
        return TreeHead(head.log, size)
