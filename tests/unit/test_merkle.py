"""The tree and its proofs, as RFC 6962 and RFC 9162 define them, for all sizes."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest

from foldlog.domain.merkle import (
    EMPTY_ROOT,
    InvalidProof,
    Tile,
    TreeBuilder,
    check_consistency,
    check_inclusion,
    consistency_proof,
    edge_tiles,
    inclusion_proof,
    node_hash,
    root_of,
)
from foldlog.domain.proofs import leaf_hash

#: The eight leaves that all implementations of certificate transparency are tested with, and their
#: roots (certificate-transparency, merkletree/merkle_tree_test.cc).
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        *("", "00", "10", "2021", "3031", "40414243"),
        *("5051525354555657", "606162636465666768696a6b6c6d6e6f"),
    )
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [hashlib.sha256(b"%d" % n).digest() for n in range(70_000)]
SIZES = [*range(18), 255, 256, 257, 511, 512, 513, 1_000, 65_535, 65_536, 65_537, 70_000]


def tree(leaves: list[bytes], step: int = 1_000):
    """A tree that grew step by step, and all its tiles at the end."""
    growth, tiles = TreeBuilder(), {}
    for start in range(0, len(leaves), step):
        tiles |= growth.append(leaves[start : start + step])
    return growth, lambda wanted: {tile: tiles[tile] for tile in wanted}


@pytest.fixture(scope="module")
def grown():
    return tree(LEAVES)


def by_the_book(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(by_the_book(leaves[:k]), by_the_book(leaves[k:]))


def test_roots_are_those_of_certificate_transparency():
    """Golden vectors that are older than this code."""
    for size, root in enumerate(CT_ROOTS, 1):
        growth, read = tree([leaf_hash(leaf) for leaf in CT_LEAVES[:size]])
        assert growth.root().hex() == root_of(size, read).hex() == root
    assert TreeBuilder().root() == root_of(0, tree([])[1]) == EMPTY_ROOT


def test_a_proof_of_certificate_transparency():
    """The paths of that suite: of leaf 5 among 8, and from 6 to 8."""
    _, read = tree([leaf_hash(leaf) for leaf in CT_LEAVES])
    assert [hash.hex() for hash in inclusion_proof(5, 8, read)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [hash.hex() for hash in consistency_proof(6, 8, read)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_of_any_size_is_in_the_tiles_of_a_later_one(grown, size):
    """A proof for last year's checkpoint is made from today's tiles."""
    _, read = grown
    assert root_of(size, read) == by_the_book(LEAVES[:size])


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_goes_on_from_its_unfinished_tiles(grown, size):
    """Any split into batches gives the same tree, and only the unfinished tiles are needed."""
    _, read = grown
    tiles = {
        tile: hashes[: tile.width(size) * 32] for tile, hashes in read(edge_tiles(size)).items()
    }
    growth = TreeBuilder(size, tiles)
    assert growth.root() == by_the_book(LEAVES[:size])
    for start, end in itertools.pairwise([size, size + 1, size + 300, size + 1_000]):
        growth.append(LEAVES[start:end] if end <= 70_000 else [])
    if size + 1_000 <= 70_000:
        assert growth.root() == by_the_book(LEAVES[: size + 1_000])


@pytest.mark.parametrize("step", [1, 7, 255, 256, 257, 66_000])
def test_the_size_of_batches_is_irrelevant(step):
    """Every tile equals the specification's for a tree of this size."""
    _, read = tree(LEAVES[:66_000], step)
    for tile in (Tile(0, 0), Tile(0, 257), Tile(1, 0), Tile(1, 1), Tile(2, 0)):
        assert len(read([tile])[tile]) == tile.width(66_000) * 32
    assert read([Tile(0, 257)])[Tile(0, 257)] == b"".join(LEAVES[257 * 256 : 66_000])
    assert read([Tile(2, 0)])[Tile(2, 0)] == by_the_book(LEAVES[:65_536])


def test_every_proof_of_small_trees():
    """All leaves and all older trees, for all sizes up to 40."""
    _, read = tree(LEAVES[:40])
    roots = [by_the_book(LEAVES[:size]) for size in range(41)]
    for size in range(41):
        for index in range(size):
            proof = inclusion_proof(index, size, read)
            check_inclusion(LEAVES[index], index, size, proof, roots[size])
            for other in set(range(size)) - {index}:
                with pytest.raises(InvalidProof):
                    check_inclusion(LEAVES[index], other, size, proof, roots[size])
        for old in range(size + 1):
            proof = consistency_proof(old, size, read)
            check_consistency(old, roots[old], size, roots[size], proof)


def test_proofs_of_large_trees(grown):
    """A few hundred random ones."""
    _, read = grown
    rng = random.Random(6962)
    for _ in range(100):
        size = rng.randrange(1, 70_000)
        root = root_of(size, read)
        index, old = rng.randrange(size), rng.randrange(size + 1)
        check_inclusion(LEAVES[index], index, size, inclusion_proof(index, size, read), root)
        proof = consistency_proof(old, size, read)
        check_consistency(old, root_of(old, read), size, root, proof)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (5, 8), (6, 8), (8, 8), (0, 7), (256, 1_000)])
def test_changed_proofs_are_refused(grown, old, new):
    """A proof or a root with a changed, missing, repeated or added hash is refused."""
    _, read = grown
    old_root, new_root = root_of(old, read), root_of(new, read)
    proof = consistency_proof(old, new, read)
    check_consistency(old, old_root, new, new_root, proof)

    other = LEAVES[-1]
    wrong = [[*proof, other], [other, *proof]]
    wrong += [[*proof[:i], other, *proof[i + 1 :]] for i in range(len(proof))]
    wrong += [[*proof[:i], *proof[i + 1 :]] for i in range(len(proof))]
    for changed in wrong:
        with pytest.raises(InvalidProof):
            check_consistency(old, old_root, new, new_root, changed)
    for a, b in ((other, new_root), (old_root, other)):
        if (old, b) != (0, other):  # every tree begins with the empty one
            with pytest.raises(InvalidProof):
                check_consistency(old, a, new, b, proof)


def test_a_proof_of_a_leaf_is_of_that_leaf_alone(grown):
    """The same for inclusion."""
    _, read = grown
    root, proof = root_of(1_000, read), inclusion_proof(700, 1_000, read)
    check_inclusion(LEAVES[700], 700, 1_000, proof, root)
    for leaf, index, size, path in (
        (LEAVES[701], 700, 1_000, proof),
        (LEAVES[700], 701, 1_000, proof),
        (LEAVES[700], 700, 700, proof),
        (LEAVES[700], -1, 1_000, proof),
        (LEAVES[700], 700, 1_000, proof[:-1]),
        (LEAVES[700], 700, 1_000, [*proof, root]),
        (LEAVES[700], 700, 1_000, [*proof[:-1], root]),
    ):
        with pytest.raises(InvalidProof):
            check_inclusion(leaf, index, size, path, root)


def test_tiles_that_lack_hashes_are_noticed():
    """A tile that was cut must cause an error instead of a wrong proof."""
    _, read = tree(LEAVES[:300])
    with pytest.raises(InvalidProof, match="lacks"):
        root_of(300, lambda wanted: {tile: read([tile])[tile][:-32] for tile in wanted})
    with pytest.raises(InvalidProof, match="another tree"):
        TreeBuilder(300, {tile: read([tile])[tile][:-32] for tile in edge_tiles(300)})
