"""The projection that grows the tree over each log, as tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from foldlog.domain.merkle import Tile, TreeBuilder, edge_tiles
from foldlog.domain.proofs import HEADER_BYTES_MAX, header_of, leaf_hash, leaf_of, unreadable_header
from foldlog.infrastructure.postgres.connection.arrays import (
    bigint_array,
    bytea_array,
    integer_array,
)
from foldlog.infrastructure.postgres.log.pages import IS_SKIPPED
from foldlog.infrastructure.postgres.projection import Generation

PROOFS_VERSION = 1

SELECT_TILES = """
SELECT level, number, hashes
  FROM tiles
  JOIN unnest(%(levels)s::integer[], %(numbers)s::bigint[]) AS wanted (level, number)
 USING (level, number)
 WHERE space = %(space)s
   AND generation = %(generation)s
 ORDER BY level, number
"""

UPSERT_TILES = """
INSERT INTO tiles (space, generation, level, number, hashes)
SELECT %(space)s, %(generation)s, level, number, hashes
  FROM unnest(
           %(levels)s::integer[], %(numbers)s::bigint[], %(hashes)s::bytea[]
       ) AS new (level, number, hashes)
    ON CONFLICT (space, generation, level, number) DO UPDATE
   SET hashes = excluded.hashes
RETURNING level
"""


def names_of(tiles: Sequence[Tile]) -> dict[str, Any]:
    """The parameters of `SELECT_TILES` but for space and generation."""
    return {
        "levels": integer_array(tile.level for tile in tiles),
        "numbers": bigint_array(tile.number for tile in tiles),
    }


def _header(state: bytes, hash_if_skipped: bytes | None) -> bytes:
    """As `leaf_header_of`, of the beginning of an event. Who cannot read one that nobody has
    stepped over yet had better stand still."""
    try:
        return header_of(state)
    except ValueError:
        if hash_if_skipped is None:
            raise
        return unreadable_header(hash_if_skipped)


class Edge:
    """The tree of a generation at its position: the tiles that go on growing."""

    bytes_uncommitted = 0  # it is a few KB, however much was written

    def __init__(self, position: int):
        self.forget(position)

    def forget(self, position: int) -> None:
        self.position = position
        self.growth = TreeBuilder() if position == 0 else None

    def committed(self) -> None:
        """It is as large as it was."""


class ProofsProjection:
    """Of an event it reads the header and the hash of its operations: that is the leaf."""

    name = "proofs"
    version = PROOFS_VERSION
    tables = {"tiles": "level, number"}
    # A leaf is bounded, and so is the header in it: no more need be read of an event of megabytes.
    columns = f"""substr(state, 1, {HEADER_BYTES_MAX}), ops_hash,
       CASE WHEN {IS_SKIPPED} THEN sha256(state) END"""
    # Checkpoints are signed once a second at most. Of a busy space the unfinished tile is written
    # a few times a second, and not once for each push.
    pause_seconds = 0.25

    def memory(self, position: int, *, bytes_max: int = 0) -> Edge:
        return Edge(position)

    def apply(
        self, to: Generation[Edge], rows: Sequence[tuple[int, bytes, bytes, bytes | None]]
    ) -> Iterator[None]:
        if to.known.growth is None:
            to.known.growth = self._load(to)
        growth = to.known.growth
        tiles = growth.append(
            [
                leaf_hash(leaf_of(_header(state, hash), ops_hash))
                for _, state, ops_hash, hash in rows
            ]
        )
        changed = sorted(tiles)
        hashes = bytea_array(tiles[tile] for tile in changed)
        to.send(UPSERT_TILES, {**names_of(changed), "hashes": hashes})
        to.known.position = growth.size
        yield

    def _load(self, to: Generation[Edge]) -> TreeBuilder:
        names = {**to.names, **names_of(edge_tiles(to.known.position))}
        rows = to.reader.execute(SELECT_TILES, names, prepare=True, binary=True).fetchall()
        return TreeBuilder(to.known.position, {Tile(level, n): hashes for level, n, hashes in rows})
