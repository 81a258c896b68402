"""Compares the stored tiles of the Merkle tree with those that the events make, level by level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from foldlog.domain.merkle import HASH_BYTES, TILE_BYTES, TILE_WIDTH, Tile

from .checks import Audited, Check

#: Full tiles that are read together: 2 MB.
TILES_PER_READ = 256

#: reads stored tiles; a missing tile is left out
ReadTiles = Callable[[Sequence[Tile]], Mapping[Tile, bytes]]


class Suspect(NamedTuple):
    """The first event whose leaf differs from the stored one: the event or the tile was changed."""

    seq: int
    tile: Tile


class AnyTilesCheck(Check):
    """Compares tiles with those that the events make.

    A leaf that differs is kept in `suspect`, because only the signed root can tell whether the tile
    or the event was changed.
    """

    suspect: Suspect | None = None
    name = "the tiles"

    def compare_all(self) -> None:
        """Compares the tiles that still wait for their comparison."""

    def compare_hashes(self, tile: Tile, expected: bytes, found: bytes) -> None:
        """Compares the hashes of a tile. Both must have the same length."""
        if expected == found:
            return
        places = range(0, len(expected), HASH_BYTES)
        place = next(n for n in places if expected[n : n + HASH_BYTES] != found[n : n + HASH_BYTES])
        covered = TILE_WIDTH**tile.level
        first = (tile.number * TILE_WIDTH + place // HASH_BYTES) * covered + 1
        if tile.level:
            of = f"seq {first} to {first + covered - 1}"
            name = f"tile {tile.level}/{tile.number}"
            self.note(f"{self.name}: {name} has another hash of {of} than the events make")
        elif self.suspect is None or first < self.suspect.seq:
            self.suspect = Suspect(first, tile)


class TilesCheck(AnyTilesCheck):
    """Compares the stored tiles of a tree of `size` leaves with the events.

    `name` describes the tree, for the findings.
    """

    def __init__(self, size: int, read: ReadTiles, name: str = "the tiles"):
        self._size = size
        self._read = read
        self.name = name
        self._seq = 0
        self._unfinished: dict[Tile, bytes] = {}
        self._waiting: dict[Tile, bytes] = {}  #: full tiles, still to be compared

    def add(self, batch: Audited) -> None:
        self._seq = batch.last
        for tile, hashes in batch.tiles.items():
            if len(hashes) == TILE_BYTES:
                self._unfinished.pop(tile, None)
                if tile.width(self._size):
                    self._waiting[tile] = hashes
            else:
                self._unfinished[tile] = hashes
        if len(self._waiting) >= TILES_PER_READ:
            self._compare(self._waiting)
            self._waiting = {}

    def compare_all(self) -> None:
        edge = {tile: hashes for tile, hashes in self._unfinished.items() if tile.width(self._size)}
        self._compare(self._waiting | edge)
        self._waiting = {}

    def finish(self) -> Iterator[str]:
        self.compare_all()
        if not self._size:
            yield f"{self.name}: there are none, or they have not come so far yet"
        elif self._seq < self._size:
            yield f"{self.name} are of these events, to seq {self._seq}"
        else:
            yield f"{self.name} are of these events"

    def _compare(self, expected: Mapping[Tile, bytes]) -> None:
        wanted = sorted(expected)
        for start in range(0, len(wanted), TILES_PER_READ):
            part = wanted[start : start + TILES_PER_READ]
            found = self._read(part)
            for tile in part:
                self._compare_tile(tile, expected[tile], found.get(tile))

    def _compare_tile(self, tile: Tile, expected: bytes, found: bytes | None) -> None:
        width = tile.width(self._size) * HASH_BYTES
        name = f"tile {tile.level}/{tile.number}"
        if found is None:
            self.note(f"{self.name}: {name} is missing")
            return
        if len(found) != width:
            counts = f"{len(found) / HASH_BYTES:g} hashes, not {width // HASH_BYTES}"
            self.note(f"{self.name}: {name} has {counts}")
            return
        common = min(len(expected), width)
        self.compare_hashes(tile, expected[:common], found[:common])


class CarriedTilesCheck(AnyTilesCheck):
    """Compares the tiles of an archive, where each tile follows the last event that it covers.

    `head` is the number of events in the archive.
    """

    def __init__(self, head: int):
        self._head = head
        self._seq = 0
        self._expected: dict[Tile, bytes] = {}

    def add(self, batch: Audited) -> None:
        self._seq = batch.last
        self._expected |= batch.tiles
        for tile, found in batch.carried.items():
            expected = self._expected.get(tile)
            if expected is not None and len(expected) == len(found):
                del self._expected[tile]
                self.compare_hashes(tile, expected, found)

    def finish(self) -> Iterator[str]:
        if self._expected and self._seq == self._head:
            level, number = min(self._expected)
            self.note(f"tile {level}/{number} is missing, or of another size")
        yield f"{self.name} are of these events"


def surplus(counts: Sequence[tuple[int, int, int]], size: int) -> str | None:
    """Describes the first tile that a tree of `size` leaves does not have, or returns `None`.

    `counts` has the number of stored tiles and the highest number of a tile for each level.
    """
    for level, count, highest in counts:
        in_level = size >> (8 * level) if 0 <= level < 8 else 0
        expected = -(-in_level // TILE_WIDTH)
        if highest >= expected:
            return f"tile {level}/{highest} is beyond the tree of {size} events"
        if count != expected:
            return f"level {level} has {count} tiles, not {expected}"
    return None
