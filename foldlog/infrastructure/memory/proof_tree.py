"""Keeps the Merkle tree of each log, its tiles and its checkpoint in memory."""

from __future__ import annotations

from collections.abc import Sequence

from foldlog.domain.errors import NoCheckpoint
from foldlog.domain.merkle import Tile
from foldlog.domain.ports import ProofTree, SpaceId, TreeHead

from .spaces import MemorySpaces


class MemoryProofTree(MemorySpaces, ProofTree):
    """Stores the Merkle tree, the tiles and the last checkpoint of each log in memory."""

    def tree(self, space: SpaceId) -> TreeHead:
        here = self._space(space)
        return TreeHead(here.log, here.tree.size)

    def tiles(self, space: SpaceId, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
        here = self._space(space)
        return {tile: here.tiles[tile] for tile in wanted if tile in here.tiles}

    def checkpoint(self, space: SpaceId) -> bytes:
        found = self._space(space).checkpoint
        if not found:
            raise NoCheckpoint(f"no checkpoint of {space!r} was signed yet")
        return found

    def publish(self, space: SpaceId, log: str, size: int, note: bytes) -> None:
        here = self._space(space)
        if here.log == log:
            here.checkpoint = note
