"""The contract of every ProofTree."""

from __future__ import annotations

import pytest

from foldlog.domain.errors import BeyondTree, NoCheckpoint, UnknownSpace
from foldlog.domain.merkle import EMPTY_ROOT, Tile, TreeBuilder, check_consistency, check_inclusion
from foldlog.domain.proofs import header_of, leaf_hash, leaf_of
from tests.helpers import changeset, grow_trees, new_id, push_of, put


@pytest.fixture
def leaves(store, space):
    """The leaf hashes of a log that is longer than a tile."""
    store.push(space, push_of(*[changeset(put(str(n))) for n in range(300)]))
    grow_trees(store)
    return [
        leaf_hash(leaf_of(header_of(entry.state), entry.ops_hash))
        for entry in store.entries(space, through=300)
    ]


def test_a_tree_is_as_large_as_its_log(store, space, leaves):
    """After it has followed the log. Both have the same id."""
    head = store.tree(space)
    assert head.size == 300
    store.push(space, push_of(changeset(put("one"))))
    grow_trees(store)
    assert store.tree(space) == (head.log, 301)


def test_tiles_are_the_hashes_of_the_log(store, space, leaves):
    """Missing tiles are left out of the answer."""
    wanted = [Tile(0, 0), Tile(0, 1), Tile(1, 0), Tile(0, 2), Tile(2, 0)]
    tiles = store.tiles(space, wanted)
    assert tiles[Tile(0, 0)] == b"".join(leaves[:256])
    assert tiles[Tile(0, 1)] == b"".join(leaves[256:])
    assert len(tiles[Tile(1, 0)]) == 32 and len(tiles) == 3


def test_proofs_can_be_checked(store, space, leaves):
    """For any event in any tree of the log, and from any size to any later one."""
    for size in (1, 2, 255, 256, 257, 300):
        growth = TreeBuilder()
        growth.append(leaves[:size])
        for seq in {1, size // 2 + 1, size}:
            proof = store.inclusion(space, seq, size)
            assert (proof.seq, proof.size, proof.root) == (seq, size, growth.root())
            check_inclusion(leaves[seq - 1], seq - 1, size, proof.path, proof.root)
        found = store.consistency(space, size)
        assert (found.old, found.new, found.old_root) == (size, 300, growth.root())
        check_consistency(size, found.old_root, 300, found.new_root, found.path)
    assert store.consistency(space, 0, 0).new_root == EMPTY_ROOT
    assert store.inclusion(space, 1).size == 300


def test_what_is_beyond_the_tree(store, space, leaves):
    """The question is refused."""
    for ask in (
        lambda: store.inclusion(space, 301),
        lambda: store.inclusion(space, 0),
        lambda: store.inclusion(space, 5, 4),
        lambda: store.inclusion(space, 1, 301),
        lambda: store.consistency(space, 301),
        lambda: store.consistency(space, 5, 4),
        lambda: store.consistency(space, 5, 301),
    ):
        with pytest.raises(BeyondTree):
            ask()


def test_checkpoints_are_kept_as_they_are(store, space, leaves):
    """Byte for byte. Before the first one, `NoCheckpoint` is raised."""
    with pytest.raises(NoCheckpoint):
        store.checkpoint(space)
    store.publish(space, new_id(), 300, b"of another log")
    with pytest.raises(NoCheckpoint):
        store.checkpoint(space)
    store.publish(space, store.tree(space).log, 300, "ä — note\n".encode())
    assert store.checkpoint(space) == "ä — note\n".encode()


def test_a_space_that_is_not_there(store, space):
    for ask in (store.tree, store.checkpoint, lambda space: store.inclusion(space, 1)):
        with pytest.raises(UnknownSpace):
            ask(space)
