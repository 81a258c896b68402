"""Notes and checkpoints: the examples of the specifications, and forgeries that must be refused."""

from __future__ import annotations

import pytest

from foldlog.domain.notes import (
    COSIGNATURE,
    Checkpoint,
    InvalidNote,
    Note,
    Signer,
    Verifier,
    bundle,
    is_origin_name,
    open_checkpoint,
    origin_of,
    parse_level,
    parse_tile_path,
    signature_lines,
    tile_path,
    unbundled,
)

#: Go, golang.org/x/mod/sumdb/note: the example of its package documentation.
PETER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_NOTE = """\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
"""  # noqa: E501
#: from the same documentation: ENOCH's note, signed by two keys
ENOCH_KEY = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
#: the checksum database of Go, and the key that every go command knows
SUMDB_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"

SIGNER = Signer("foldlog.test/spaces/home/1", bytes(range(32)))
ROOT = bytes(range(32, 64))
CHECKPOINT = Checkpoint("foldlog.test/spaces/home/1", 2252, ROOT)


def signed() -> Note:
    return Note(CHECKPOINT.text, [SIGNER.sign(CHECKPOINT.text)])


def test_a_note_that_others_signed_is_verified():
    """Go's package wrote it."""
    note = Note.parse(PETER_NOTE.encode())
    assert note.verified_by([Verifier.parse(PETER_KEY)])
    assert note.encoded == PETER_NOTE.encode()


@pytest.mark.parametrize("vkey", [PETER_KEY, ENOCH_KEY, SUMDB_KEY])
def test_keys_of_others_are_read_and_written(vkey):
    """The id in a vkey is the hash of name, algorithm and key."""
    assert Verifier.parse(vkey).vkey == vkey


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "PeterNeumann",
        PETER_KEY.replace("c74f", "c74e"),
        PETER_KEY[:-4],
        PETER_KEY.replace("Peter", "Paul"),
        PETER_KEY.replace("PeterNeumann", "Peter Neumann"),
        PETER_KEY + "=",
    ],
)
def test_invalid_keys_are_refused(vkey):
    """One wrong letter in a key must be noticed, or the key would fail for all notes."""
    with pytest.raises(InvalidNote):
        Verifier.parse(vkey)


def test_our_checkpoint_byte_for_byte():
    """A golden checkpoint: Ed25519 is deterministic, and the format is fixed."""
    assert signed().encoded == GOLDEN.encode()
    checkpoint, note = open_checkpoint(GOLDEN.encode(), [SIGNER.verifier()], origin=SIGNER.name)
    assert (checkpoint, note.signatures) == (CHECKPOINT, signed().signatures)


GOLDEN = """\
foldlog.test/spaces/home/1
2252
ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=

— foldlog.test/spaces/home/1 e0fC6BLQ7ibzdE8Nnm6DuHgn7Wr2y8bZ5l/zQTGwI/0TPBEDmzHimy9DCpf0SmJa/nHTisuocyc2VgJ31Q27DUGb0gQ=
"""  # noqa: E501


def test_a_flipped_byte_anywhere_is_noticed():
    """A change of the text, of the name, or of the signature is an error."""
    encoded = bytearray(GOLDEN.encode())
    for place in range(len(encoded)):
        for bit in (1, 32):
            changed = bytearray(encoded)
            changed[place] ^= bit
            with pytest.raises(InvalidNote):
                open_checkpoint(bytes(changed), [SIGNER.verifier()], origin=SIGNER.name)


def test_signatures_of_unknown_keys_are_ignored():
    """A known key must have signed as well."""
    stranger = Signer("else.test", b"s" * 32)
    note = signed().with_signatures([stranger.sign(CHECKPOINT.text)])
    assert open_checkpoint(note.encoded, [SIGNER.verifier()])[0] == CHECKPOINT
    assert note.verified_by([SIGNER.verifier(), stranger.verifier()])[1].name == "else.test"
    with pytest.raises(InvalidNote, match="no known key"):
        open_checkpoint(note.encoded, [Signer("third.test", b"t" * 32).verifier()])


def test_a_wrong_signature_of_a_known_key_spoils_the_note():
    """The note is refused even if another signature is right."""
    other = Signer("else.test", b"s" * 32)
    note = signed().with_signatures([other.sign("something else\n")])
    with pytest.raises(InvalidNote, match=r"else\.test is wrong"):
        open_checkpoint(note.encoded, [SIGNER.verifier(), other.verifier()])


def test_a_cosignature_says_when():
    """Its time is signed together with the text, under a key id that differs from a log's."""
    witness = Signer("witness.test/w", b"w" * 32)
    cosigned = signed().with_signatures([witness.cosign(CHECKPOINT.text, 1_795_424_402)])
    (line,) = [s for s in cosigned.signatures if s.name == "witness.test/w"]
    assert int.from_bytes(line.signature[:8], "big") == 1_795_424_402
    assert cosigned.verified_by([witness.verifier(COSIGNATURE)])
    assert not cosigned.verified_by([witness.verifier()])  # another key id

    later = line.signature[:7] + b"\xff" + line.signature[8:]
    forged = signed().with_signatures([type(line)(line.name, line.key_id, later)])
    with pytest.raises(InvalidNote):
        forged.verified_by([witness.verifier(COSIGNATURE)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n1\n",
        "origin\n01\n" + "A" * 43 + "=\n",
        "origin\n-1\n" + "A" * 43 + "=\n",
        "origin\n9223372036854775808\n" + "A" * 43 + "=\n",
        "origin\n1\nAAAA\n",
        "origin\n1\n" + "A" * 43 + "\n",
        "\n1\n" + "A" * 43 + "=\n",
        "origin\n1\n" + "A" * 43 + "=\n\nmore\n",
        "origin\n1\n" + "A" * 43 + "=",
    ],
)
def test_invalid_checkpoints_are_refused(text):
    """Sizes have one spelling, roots have 32 bytes."""
    with pytest.raises(InvalidNote):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\n\xe2\x80\x94 name AAAAAAA=",
        b"text\n\nname AAAAAAA=\n",
        b"text\n\n\xe2\x80\x94 na+me AAAAAAA=\n",
        b"text\n\n\xe2\x80\x94 name AAAA\n",
        b"te\txt\n\n\xe2\x80\x94 name AAAAAAA=\n",
        b"\xff\n\n\xe2\x80\x94 name AAAAAAA=\n",
        b"x" * 100_000 + b"\n\n\xe2\x80\x94 name AAAAAAA=\n",
    ],
)
def test_invalid_notes_are_refused(note):
    """A note is refused before its content is used."""
    with pytest.raises(InvalidNote):
        Note.parse(note)
    assert signature_lines("— name AAAAAAA=\n")[0].name == "name"


@pytest.mark.parametrize(
    ("index", "path"),
    [(0, "000"), (67, "067"), (1_000, "x001/000"), (1_234_067, "x001/x234/067")],
)
def test_paths_of_tiles(index, path):
    """The last example is the specification's own."""
    assert tile_path(index) == path
    assert parse_tile_path(path) == (index, None)
    assert parse_tile_path(path + ".p/112") == (index, 112)
    assert tile_path(index, 112) == path + ".p/112"


@pytest.mark.parametrize(
    "path",
    ["", "0", "1000", "x000/067", "x1/000", "067.p/0", "067.p/256", "067.p/01", "067/", "/067"],
)
def test_invalid_paths_of_tiles_are_refused(path):
    """A tile has one path. A second path would be a second file in every cache."""
    assert parse_tile_path(path) is None


def test_levels():
    assert [parse_level(text) for text in ("0", "9", "63")] == [0, 9, 63]
    assert [parse_level(text) for text in ("00", "64", "-1", "", "data")] == [None] * 5


def test_bundles():
    """Each entry of a bundle follows its length in two bytes."""
    assert bundle([b"", b"ab"]) == b"\0\0\0\2ab"
    assert unbundled(b"\0\0\0\2ab") == [b"", b"ab"]
    for broken in (b"\0", b"\0\3ab"):
        with pytest.raises(InvalidNote):
            unbundled(broken)


def test_origins():
    """An origin excludes schemes, spaces, plus signs, and a slash at either end."""
    assert origin_of("foldlog.local", "home", "id") == "foldlog.local/spaces/home/id"
    assert all(map(is_origin_name, ("foldlog.local", "a.example:8080/x", "h")))
    for name in ("", "https://a", "a b", "a+b", "/a", "a/", "a//b", "ä"):
        assert not is_origin_name(name), name
