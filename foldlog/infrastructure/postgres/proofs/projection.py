"""Defines the projection that builds a Merkle tree over each log and stores it as tiles."""

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
from foldlog.infrastructure.postgres.log.pages import IS_SKIPPED, select_page
from foldlog.infrastructure.postgres.projection import Generation

PROOFS_VERSION = 1

# A leaf and so its header have a limited size. The rest of an event of several MB stays unread.
SELECT_LEAVES = select_page(
    f"""originator_version, substr(state, 1, {HEADER_BYTES_MAX}), ops_hash,
       CASE WHEN {IS_SKIPPED} THEN sha256(state) END"""
)

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


def tile_params(tiles: Sequence[Tile]) -> dict[str, Any]:
    """Returns a dict with the parameters `levels` and `numbers`, which identify the given tiles.

    The dict is for a statement that reads or writes tiles. The caller must add the other parameters
    of the statement, such as `space` and `generation`.
    """
    return {
        "levels": integer_array(tile.level for tile in tiles),
        "numbers": bigint_array(tile.number for tile in tiles),
    }


def _header(state: bytes, hash_if_skipped: bytes | None) -> bytes:
    """Returns the header of an event. The header is a part of the event's leaf in the Merkle tree.

    `state` is the first part of the stored event, from which the function reads the header.
    `hash_if_skipped` is `None` unless an operator has skipped the event. For a skipped event, it is
    the hash of the stored event. If a skipped event is unreadable, the function makes the header
    from this hash. If any other event is unreadable, the function raises `ValueError`, which halts
    the projection.
    """
    try:
        return header_of(state)
    except ValueError:
        if hash_if_skipped is None:
            raise
        return unreadable_header(hash_if_skipped)


class TreeCache:
    """Keeps the unfinished tiles of a Merkle tree in memory between two batches.

    These are the tiles at the right edge of the tree, to which new leaves are appended.
    """

    bytes_uncommitted = 0  # the edge stays at a few KB, also in a large transaction

    def __init__(self, position: int):
        self.reset(position)

    def reset(self, position: int) -> None:
        self.position = position
        self.builder = TreeBuilder() if position == 0 else None

    def on_commit(self) -> None:
        pass


class ProofsProjection:
    """Builds the Merkle tree of a log: appends one leaf to the tree for each event of the log.

    The leaf consists of the event's header and the hash of the event's operations.
    """

    name = "proofs"
    version = PROOFS_VERSION
    tables = {"tiles": "level, number"}
    select_page = SELECT_LEAVES
    # The signer signs at most once per second. The pause writes the unfinished tile of a busy space
    # a few times per second instead of once for each push.
    pause_seconds = 0.25

    def new_cache(self, position: int, *, bytes_max: int = 0) -> TreeCache:
        return TreeCache(position)

    def apply(
        self, to: Generation[TreeCache], rows: Sequence[tuple[int, bytes, bytes, bytes | None]]
    ) -> Iterator[None]:
        if to.cache.builder is None:
            to.cache.builder = self._load(to)
        builder = to.cache.builder
        tiles = builder.append(
            [
                leaf_hash(leaf_of(_header(state, hash), ops_hash))
                for _, state, ops_hash, hash in rows
            ]
        )
        changed = sorted(tiles)
        hashes = bytea_array(tiles[tile] for tile in changed)
        to.send(UPSERT_TILES, {**tile_params(changed), "hashes": hashes})
        to.cache.position = builder.size
        yield

    def _load(self, to: Generation[TreeCache]) -> TreeBuilder:
        params = {**to.params, **tile_params(edge_tiles(to.cache.position))}
        rows = to.reader.execute(SELECT_TILES, params, prepare=True, binary=True).fetchall()
        return TreeBuilder(to.cache.position, {Tile(level, n): hashes for level, n, hashes in rows})
