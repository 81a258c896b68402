"""Checkpoints, tiles and proofs for auditors, with exactly the bytes of C2SP."""

from __future__ import annotations

import hashlib
from base64 import b64decode

import pytest

from foldlog.domain.merkle import check_consistency, check_inclusion
from foldlog.domain.notes import unbundled
from foldlog.domain.proofs import header_of, leaf_hash, leaf_of, ops_hash
from tests.helpers import changeset, grow_trees, put

from .conftest import assert_problem


@pytest.fixture
def audited(client, store):
    """A client of a space of 300 events."""
    client.push(*[changeset(put(str(n), n=n)) for n in range(300)])
    grow_trees(store)
    return client


def test_tiles_are_hashes_and_bundles_are_leaves(audited):
    """Each entry of a bundle hashes to its place in the tile. Both are free of values."""
    for path, width in (("000", 256), ("001.p/44", 44), ("001.p/7", 7), ("000.p/3", 3)):
        tile, entries = audited.get(f"tile/0/{path}"), audited.get(f"tile/entries/{path}")
        for answer in (tile, entries):
            assert answer.status_code == 200
            assert answer.content_type == "application/octet-stream"
            assert "immutable" in answer.headers["Cache-Control"]
            assert (
                answer.headers["Vary"] == "Authorization"
            )  # cached for years, for this caller only
        leaves = unbundled(entries.data)
        assert len(leaves) == width and tile.data == b"".join(map(leaf_hash, leaves))
        assert b'"fields"' not in entries.data
    above = audited.get("tile/1/000.p/1").data
    assert len(above) == 32


@pytest.mark.parametrize(
    "path",
    [
        "0/001",
        "0/002.p/1",
        "0/001.p/45",
        "1/000",
        "1/000.p/2",
        "63/000",
        "entries/001",
        "2/000.p/1",
    ],
)
def test_a_tile_beyond_the_tree(audited, path):
    """A tile beyond the tree is a 404."""
    assert_problem(audited.get(f"tile/{path}"), 404, "beyond-tree", size=300)


@pytest.mark.parametrize(
    "path",
    ["0/0", "0/x000/000", "64/000", "00/000", "data/000", "0/000.p/0", "0/000.p/256", "0/000/"],
)
def test_a_wrong_path_of_a_tile(audited, path):
    """A tile has one address."""
    assert_problem(audited.get(f"tile/{path}"), 404, "no-such-path")


def test_a_checkpoint_is_answered_as_it_was_signed(audited, store):
    """It is text, and caches must revalidate it."""
    assert_problem(audited.get("checkpoint"), 404, "no-checkpoint")
    note = "origin\n300\nroot\n\n— origin AAAAAAA=\n".encode()
    store.publish(audited.space, store.tree(audited.space).log, 300, note)
    answer = audited.get("checkpoint")
    assert (answer.data, answer.content_type) == (note, "text/plain; charset=utf-8")
    assert "no-cache" in answer.headers["Cache-Control"]


def test_a_process_without_keys_says_so(audited):
    """An empty list would mean that the log is unsigned, so the response is a 404."""
    assert_problem(audited.get("keys"), 404, "no-keys")


def hashes(texts):
    return list(map(b64decode, texts))


def test_an_event_is_proven_with_all_that_it_says(audited):
    """The response alone proves the event, from the salt to the root."""
    found = audited.get("proof/event/42?size=100").json
    raw = audited.get("events?after=41&limit=1").data
    state = raw[raw.index(b'[{"seq"') + 1 : raw.index(b'],"through"')]
    operation = state[state.index(b'"ops":[') + 7 : -2]
    assert ops_hash(bytes.fromhex(found["salt"]), [operation]).hex() == found["ops_hash"]
    leaf = leaf_hash(leaf_of(header_of(state), bytes.fromhex(found["ops_hash"])))
    assert leaf == b64decode(found["leaf_hash"])
    root = b64decode(found["root"])
    check_inclusion(leaf, 41, 100, hashes(found["inclusion_path"]), root)

    plain = audited.get("proof/inclusion?seq=42&size=100").json
    assert {name: found[name] for name in plain} == plain


def test_consistency_is_proven(audited):
    """From one size to another, or to the whole tree."""
    found = audited.get("proof/consistency?from=100").json
    assert (found["from"], found["to"]) == (100, 300)
    check_consistency(
        100,
        b64decode(found["from_root"]),
        300,
        b64decode(found["to_root"]),
        hashes(found["consistency_path"]),
    )
    assert audited.get("proof/consistency?from=0&to=0").json["to_root"] == (
        "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    )
    assert b64decode("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=") == hashlib.sha256().digest()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("proof/inclusion?seq=301", 404),
        ("proof/inclusion?seq=1&size=301", 404),
        ("proof/inclusion?seq=0", 400),
        ("proof/inclusion", 400),
        ("proof/consistency", 400),
        ("proof/consistency?from=301", 404),
        ("proof/event/301", 404),
        ("proof/event/x", 400),
    ],
)
def test_proofs_that_cannot_be(audited, path, code):
    """The service refuses them, with the reason."""
    answer = audited.get(path)
    assert answer.status_code == code, answer.text
    assert answer.content_type == "application/problem+json"


def test_an_unknown_space_has_no_tree(client):
    for path in ("checkpoint", "keys", "tile/0/000", "tile/entries/000", "proof/inclusion?seq=1"):
        assert_problem(client.get(path), 404, "unknown-space")
