"""The port `ProofTree`: reads the Merkle tree over each log and its signed checkpoints, and makes
proofs from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from .. import merkle
from ..errors import BeyondTree
from .event_store import SpaceId


class TreeHead(NamedTuple):
    """The current state of a Merkle tree: the id of its log, and its number of leaves."""

    log: str
    size: int


class InclusionProof(NamedTuple):
    """Proves that event `seq` is in the tree with `size` leaves."""

    log: str
    seq: int
    size: int
    root: bytes
    path: list[bytes]


class ConsistencyProof(NamedTuple):
    """Proves that the tree with `new` leaves begins with the tree with `old` leaves."""

    log: str
    old: int
    new: int
    old_root: bytes
    new_root: bytes
    path: list[bytes]


class ProofTree(ABC):
    """Reads the Merkle tree of each log, and the signed checkpoints of the tree. The tree is stored
    as tiles.

    New events appear in the tree after a short delay.
    """

    @abstractmethod
    def tree(self, space: SpaceId) -> TreeHead:
        """Returns the id of the space's log, and the current number of leaves of its Merkle tree.
        Raises `UnknownSpace` if the space is missing."""

    @abstractmethod
    def tiles(self, space: SpaceId, wanted: Sequence[merkle.Tile]) -> dict[merkle.Tile, bytes]:
        """Returns a dict from each of the wanted tiles to its hashes, one after another.

        Call `tree(space)` first. If it returned a tree of N leaves, each tile contains at least the
        hashes that it has in a tree of N leaves. A tile may contain more hashes, because the tree
        may have grown since that call.
        """

    @abstractmethod
    def checkpoint(self, space: SpaceId) -> bytes:
        """Returns the newest published checkpoint of the space as a signed note. Raises
        `NoCheckpoint` if no checkpoint was published so far."""

    @abstractmethod
    def publish(self, space: SpaceId, log: str, size: int, note: bytes) -> None:
        """Publishes `note`, a checkpoint over the first `size` events of the log with the id `log`.
        If the log of the space was replaced by a log with another id, the call has no effect.

        The checkpoint is not verified here, because the signer has checked it before.
        """

    def inclusion(self, space: SpaceId, seq: int, size: int | None = None) -> InclusionProof:
        """Returns a proof that event `seq` is in the tree with `size` leaves (by default the
        current tree).

        Raises `BeyondTree` if `seq` is 0 or larger than the tree, or if the current tree is smaller
        than `size`.
        """
        head = self._head(space, size)
        if not 1 <= seq <= head.size:
            raise BeyondTree(f"a tree of {head.size} has no event {seq}")
        spans = [merkle.Span(0, head.size), *merkle.inclusion_spans(seq - 1, head.size)]
        root, *path = merkle.hashes_of(spans, lambda wanted: self.tiles(space, wanted))
        return InclusionProof(head.log, seq, head.size, root, path)

    def consistency(self, space: SpaceId, old: int, new: int | None = None) -> ConsistencyProof:
        """Returns a proof that the tree with `new` leaves (by default the current tree) begins with
        the tree with `old` leaves.

        Raises `BeyondTree` if `old` is larger than `new`, or if the current tree is smaller than
        `new`.
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
