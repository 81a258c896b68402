"""The Merkle tree over a log: computes its root and its proofs, and verifies proofs.

The tree is that of RFC 6962 section 2.1 and RFC 9162 section 2.1. It is stored as tiles (C2SP
tlog-tiles): a tile of level 0 contains the hashes of 256 leaves, a tile of level 1 contains the
root hashes of 256 full tiles of level 0, and so on. A full tile never changes. The current tiles
are therefore enough to compute the tree of any earlier size, and all proofs of that tree.

A proof is computed in two steps. The first step lists the parts of the tree whose hashes form the
proof. Each part is a `Span` of leaves. The second step reads a few tiles and computes the hash of
each part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
#: the maximum number of hashes in a proof, reached in a tree of 2^63 leaves
PROOF_LENGTH_MAX = 63

EMPTY_ROOT = hashlib.sha256().digest()


class InvalidProof(ValueError):
    """Raised if a proof is wrong, or if the tiles from which hashes are computed are incomplete."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the hash of an inner node of the tree from the hashes of its two children.

    The hashed bytes begin with 1 for an inner node and with 0 for a leaf, so that a forged leaf
    always differs from an inner node.
    """
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of_full(hashes: bytes) -> bytes:
    """Returns the root of a full subtree. `hashes` contains the hashes of its lowest level, one
    after the other; their number must be a power of two."""
    while len(hashes) > HASH_BYTES:
        pairs = range(0, len(hashes), 2 * HASH_BYTES)
        sha256 = hashlib.sha256
        hashes = b"".join([sha256(b"\1" + hashes[i : i + 64]).digest() for i in pairs])
    return hashes


# -- spans: the parts of a tree and of its proofs


class Span(NamedTuple):
    """A range of leaves, counted from 0: from `start` up to the leaf before `end`. A span covers
    one node of the tree, or several nodes that are neighbours."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def halves(self) -> tuple[Span, Span]:
        """Splits the span into two. The size of the left part is the largest power of two below the
        size of the span (RFC 9162 section 2.1.1)."""
        middle = self.start + (1 << (self.size - 1).bit_length() - 1)
        return Span(self.start, middle), Span(middle, self.end)

    def full(self) -> Iterator[Span]:
        """Splits the span into full subtrees, and yields them from left to right. The number of
        leaves of a full subtree is a power of two."""
        if self.size.bit_count() == 1:
            yield self
        elif self.size:
            for half in self.halves():
                yield from half.full()


def inclusion_spans(index: int, size: int) -> list[Span]:
    """Returns the spans whose hashes prove that leaf `index` is in a tree of `size` leaves (RFC
    9162 section 2.1.3.1). The first span is the sibling of the leaf, and the last one is a child of
    the root."""
    assert 0 <= index < size
    spans = []
    span = Span(0, size)
    while span.size > 1:
        left, right = span.halves()
        span, sibling = (left, right) if index < left.end else (right, left)
        spans.append(sibling)
    return spans[::-1]


def consistency_spans(old: int, new: int) -> list[Span]:
    """Returns the spans whose hashes prove that the tree of `new` leaves begins with the tree of
    `old` leaves (RFC 9162 section 2.1.4.1)."""
    assert 0 <= old <= new
    if old in (0, new):
        return []
    spans = []
    span, is_old_root = Span(0, new), True
    while span.end != old:
        left, right = span.halves()
        if old <= left.end:
            span, sibling = left, right
        else:
            span, sibling, is_old_root = right, left, False
        spans.append(sibling)
    if not is_old_root:  # otherwise this hash is the old root, which the verifier has
        spans.append(span)
    return spans[::-1]


# -- tiles


class Tile(NamedTuple):
    """The position of a tile in the tree: its level, and its number in this level, counted from
    0."""

    level: int
    number: int

    def width(self, size: int) -> int:
        """Returns the number of hashes that this tile has in a tree of `size` leaves: 256 for a
        full tile, 0 for a missing one."""
        in_level = size >> (TILE_HEIGHT * self.level)
        return max(0, min(TILE_WIDTH, in_level - self.number * TILE_WIDTH))


#: reads tiles; each must have at least the hashes that the requested tree has
ReadTiles = Callable[[Sequence[Tile]], Mapping[Tile, bytes]]


def tile_of(span: Span) -> tuple[Tile, slice]:
    """Finds the stored hashes from which the root of a full subtree can be computed. `span` is the
    range of the subtree's leaves. Returns the tile that contains these hashes, and their slice in
    the bytes of the tile."""
    height = span.size.bit_length() - 1
    level, above = divmod(height, TILE_HEIGHT)
    index, offset = divmod(span.start >> (TILE_HEIGHT * level), TILE_WIDTH)
    return Tile(level, index), slice(offset * HASH_BYTES, (offset + (1 << above)) * HASH_BYTES)


def hashes_of(spans: Iterable[Span], read: ReadTiles) -> list[bytes]:
    """Returns a list with the hash of each span, in the order of `spans`. The hashes are computed
    from tiles. The function calls `read` once, with all tiles that are needed. Raises
    `InvalidProof` if a tile is missing or has too few hashes."""
    parts = [list(span.full()) for span in spans]
    tiles = read(sorted({tile_of(full)[0] for part in parts for full in part}))

    def of_full(span: Span) -> bytes:
        tile, where = tile_of(span)
        hashes = tiles.get(tile, b"")[where]
        if len(hashes) != where.stop - where.start:
            raise InvalidProof(f"tile {tile.level}/{tile.number} lacks hashes")
        return root_of_full(hashes)

    return [joined(map(of_full, part)) for part in parts]


def joined(hashes: Iterable[bytes]) -> bytes:
    """Returns the root of the tree that consists of several full subtrees. `hashes` are the roots
    of these subtrees from left to right. Each subtree must be larger than the next one."""
    root = b""
    for left in reversed(list(hashes)):
        root = node_hash(left, root) if root else left
    return root or EMPTY_ROOT


def root_of(size: int, read: ReadTiles) -> bytes:
    """Returns the root of the tree over the first `size` leaves, computed from tiles."""
    return hashes_of([Span(0, size)], read)[0] if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read: ReadTiles) -> list[bytes]:
    return hashes_of(inclusion_spans(index, size), read)


def consistency_proof(old: int, new: int, read: ReadTiles) -> list[bytes]:
    return hashes_of(consistency_spans(old, new), read)


class TreeBuilder:
    """Builds a Merkle tree by appending leaves. Keeps only the unfinished tile of each level in
    memory."""

    def __init__(self, size: int = 0, edge: Mapping[Tile, bytes] | None = None):
        """Starts with a tree of `size` leaves. `edge` must contain the unfinished tiles of this
        tree, as `edge_tiles` lists them. Raises `InvalidProof` if a tile has a wrong number of
        hashes."""
        self.size = size
        self._edge: list[bytearray] = []
        for tile in edge_tiles(size):
            hashes = (edge or {})[tile]
            if len(hashes) != tile.width(size) * HASH_BYTES:
                raise InvalidProof(
                    f"tile {tile.level}/{tile.number} belongs to another tree than one of {size}"
                )
            self._edge += [bytearray() for _ in range(tile.level - len(self._edge))]
            self._edge.append(bytearray(hashes))

    def append(self, hashes: Sequence[bytes]) -> dict[Tile, bytes]:
        """Appends the hashes of new leaves to the tree. Returns a dict from each tile that has
        changed to its new bytes, which are its hashes one after another."""
        changed = self._extend(0, b"".join(hashes))
        self.size += len(hashes)
        return changed

    def _extend(self, level: int, hashes: bytes) -> dict[Tile, bytes]:
        if not hashes:
            return {}
        if level == len(self._edge):
            self._edge.append(bytearray())
        edge = self._edge[level]
        index = (self.size >> (TILE_HEIGHT * level)) // TILE_WIDTH
        edge += hashes
        changed: dict[Tile, bytes] = {}
        above = []
        while len(edge) >= TILE_BYTES:
            full = changed[Tile(level, index)] = bytes(edge[:TILE_BYTES])
            del edge[:TILE_BYTES]
            above.append(root_of_full(full))
            index += 1
        if edge:
            changed[Tile(level, index)] = bytes(edge)
        return changed | self._extend(level + 1, b"".join(above))

    @property
    def edge(self) -> list[bytes]:
        """Returns a list with the bytes of each unfinished tile, in the order of `edge_tiles`."""
        return [bytes(hashes) for hashes in self._edge if hashes]

    def root(self) -> bytes:
        """Returns the root of the tree. The unfinished tiles are enough to compute it, because a
        full tile is represented by one hash in the tile above."""
        parts: list[bytes] = []  # from right to left
        for edge in self._edge:
            hashes = bytes(edge)
            count = len(hashes) // HASH_BYTES
            while count:
                width = count & -count
                parts.append(root_of_full(hashes[(count - width) * HASH_BYTES :]))
                hashes = hashes[: (count - width) * HASH_BYTES]
                count -= width
        return joined(reversed(parts))


def edge_tiles(size: int) -> list[Tile]:
    """Returns the positions of the unfinished tiles in a tree of `size` leaves, lowest level first.
    Appending to the tree needs only these tiles."""
    tiles = []
    level, in_level = 0, size
    while in_level:
        if in_level % TILE_WIDTH:
            tiles.append(Tile(level, in_level // TILE_WIDTH))
        level, in_level = level + 1, in_level // TILE_WIDTH
    return tiles


# -- verification by RFC 9162, from the proof alone


def check_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Raises `InvalidProof` if the proof does not show that `leaf` is the hash of leaf `index` in
    the tree with this size and root (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        raise InvalidProof(f"a tree of {size} has no leaf {index}")
    hash, position, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0:
            raise InvalidProof("the proof is too long")
        if position & 1 or position == last:
            hash = node_hash(sibling, hash)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            hash = node_hash(hash, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise InvalidProof("the proof is too short")
    if hash != root:
        raise InvalidProof("the leaf is missing in the tree of this root")


def check_consistency(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raises `InvalidProof` if the proof does not show that the tree of `new` leaves begins with
    the tree of `old` leaves (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old <= new:
        raise InvalidProof(f"a tree of {new} cannot begin with one of {old}")
    if old in (0, new):
        if proof:
            raise InvalidProof("the proof is too long")
        if old_root != (new_root if old else EMPTY_ROOT):
            raise InvalidProof("two trees of the same size have different roots")
        return
    hashes = list(proof)
    if old.bit_count() == 1:
        hashes.insert(0, old_root)
    if not hashes:
        raise InvalidProof("the proof is too short")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    in_old = in_new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise InvalidProof("the proof is too long")
        if position & 1 or position == last:
            in_old, in_new = node_hash(sibling, in_old), node_hash(sibling, in_new)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            in_new = node_hash(in_new, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise InvalidProof("the proof is too short")
    if in_old != old_root:
        raise InvalidProof("the old root does not follow from the proof")
    if in_new != new_root:
        raise InvalidProof("the new root does not follow from the proof")
