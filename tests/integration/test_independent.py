"""Independent verifiers, and the small one of the docs, agree with ours. They must accept a correct
log, and reject a flipped byte, a missing, moved or added event, and a lost tail.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.domain.merkle import TreeBuilder, check_consistency
from foldlog.domain.notes import tile_path, unbundled
from foldlog.domain.proofs import leaf_hash
from foldlog.infrastructure.signing.keys import rotate_keys
from tests.archives import read_members, write_members
from tests.helpers import changeset, push_of, put
from tests.integration.test_verify import audited, change  # noqa: F401

ROOT = Path(__file__).parents[2]
GOCODE = Path("/usr/share/gocode")
has_go = shutil.which("go") and (GOCODE / "src/golang.org/x/mod/sumdb/tlog").exists()
needs_go = pytest.mark.skipif(
    not has_go, reason="needs Go: apt-get install golang-go golang-golang-x-mod-dev"
)


@pytest.fixture(scope="session")
def checker(tmp_path_factory):
    """The program in tests/proofs_go, built once."""
    folder = tmp_path_factory.mktemp("go")
    env = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(GOCODE),
        "GOFLAGS": "-mod=mod",
        "GOCACHE": str(folder / "cache"),
    }
    program = folder / "check"
    source = ROOT / "tests/proofs_go/check.go"
    subprocess.run(["go", "build", "-o", program, source], env=env, check=True)
    return program


@pytest.fixture
def mirror(audited, client_of):  # noqa: F811
    """A copy of everything that the service publishes, as a mirror fetches it."""
    parts = audited.stores
    app = create_app(
        store=parts.log, master=parts.master, ready=dict, tree=parts.proofs, access=OpenAccess()
    )
    client = client_of(app)
    folder = audited.folder / "mirror"

    def fetch(path: str) -> None:
        answer = client.get(f"/v1/spaces/s/{path}")
        assert answer.status_code == 200, answer.text
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(answer.data)

    def fetch_all() -> None:
        fetch("checkpoint")
        size = parts.proofs.tree("s").size
        for start in range(0, size, 256):
            width = min(256, size - start)
            path = tile_path(start // 256, None if width == 256 else width)
            fetch(f"tile/0/{path}")
            fetch(f"tile/entries/{path}")
        fetch(f"tile/1/{tile_path(0, size // 256)}")

    fetch_all()
    return folder, fetch_all


def go(checker, audited, folder: Path, *, kept: bool = True) -> subprocess.CompletedProcess:  # noqa: F811
    words = [audited.folder / "kept"] if kept else []
    return subprocess.run(
        [checker, folder, audited.vkey, *words], capture_output=True, text=True, check=False
    )


@needs_go
def test_go_accepts_a_correct_log(checker, audited, mirror):  # noqa: F811
    """It verifies each of 440 entries with proofs from our tiles, and the consistency with 40."""
    assert go(checker, audited, mirror[0]).stdout == "ok 440\n"


@needs_go
def test_go_rejects_a_flipped_byte_anywhere(checker, audited, mirror):  # noqa: F811
    """One byte is flipped in every file, at a random place."""
    folder, _ = mirror
    rng = random.Random(1)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        for place in rng.sample(range(len(data)), 8):
            file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            done = go(checker, audited, folder)
            assert done.returncode, (file, place)
        file.write_bytes(data)
    assert go(checker, audited, folder).returncode == 0


@needs_go
@pytest.mark.parametrize("how", ["removed", "reordered", "inserted"])
def test_go_rejects_other_events(checker, audited, mirror, how):  # noqa: F811
    """The signature stays the same."""
    folder, _ = mirror
    file = folder / "tile/entries/000"
    entries = unbundled(file.read_bytes())
    if how == "removed":
        del entries[7]
    elif how == "reordered":
        entries[7], entries[8] = entries[8], entries[7]
    else:
        entries.insert(7, entries[7])
    file.write_bytes(b"".join(len(e).to_bytes(2, "big") + e for e in entries))
    done = go(checker, audited, folder)
    assert done.returncode == 1 and "WRONG" in done.stdout


@needs_go
def test_go_rejects_a_log_that_lost_its_tail(checker, audited, mirror):  # noqa: F811
    """A shorter, correctly signed log is compared with a kept checkpoint."""
    folder, _ = mirror
    newer = (folder / "checkpoint").read_bytes()
    older = (audited.folder / "kept").read_bytes()
    (folder / "checkpoint").write_bytes(older)
    (audited.folder / "kept").write_bytes(newer)
    done = go(checker, audited, folder)
    assert done.returncode == 1 and done.stdout


def test_pymerkle_makes_the_same_tree(audited, mirror):  # noqa: F811
    """Another RFC 9162 library in Python computes the same roots, and we accept its proofs."""
    pymerkle = pytest.importorskip("pymerkle", reason="needs pymerkle: pip install pymerkle")
    folder, _ = mirror
    leaves = [
        entry
        for file in ("tile/entries/000", "tile/entries/001.p/184")
        for entry in unbundled((folder / file).read_bytes())
    ]
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        tree.append_entry(leaf)
    proofs = audited.stores.proofs
    for old in (1, 2, 40, 255, 256, 257, 440):
        ours = proofs.consistency("s", old)
        assert tree.get_root(old) == ours.old_root and tree.get_root(440) == ours.new_root
        theirs = tree.prove_consistency(old, 440)
        pymerkle.verify_consistency(ours.old_root, ours.new_root, theirs)
        check_consistency(old, tree.get_root(old), 440, tree.get_root(440), ours.path)
        theirs = tree.prove_inclusion(old, 440)
        pymerkle.verify_inclusion(leaf_hash(leaves[old - 1]), ours.new_root, theirs)


def small(audited, file: str, *words: str) -> subprocess.CompletedProcess:  # noqa: F811
    script = ROOT / "docs/reference/verify_log.py"
    return subprocess.run(
        [sys.executable, "-I", script, file, "--key", audited.vkey, *words],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_small_verifier_accepts_a_correct_archive(audited):  # noqa: F811
    """It also saves the checkpoint for the next time."""
    file, kept = audited.archive(), str(audited.folder / "kept")
    done = small(audited, file, "--checkpoint", kept, "--save", str(audited.folder / "new"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "440 events" in done.stdout and "all is well" in done.stdout
    assert small(audited, file, "--checkpoint", str(audited.folder / "new")).returncode == 0


@pytest.mark.parametrize(
    "how", ["flipped", "salt", "removed", "reordered", "inserted", "cut", "unsigned", "signed late"]
)
def test_the_small_verifier_rejects_a_changed_archive(audited, how):  # noqa: F811
    """The archive has the same checkpoint, or none."""
    parts = dict(read_members(audited.archive("log.tar")))
    name = "events/000000000101.jsonl"
    lines = parts[name].split(b"\n")
    if how in ("flipped", "signed late"):
        lines[5] = lines[5].replace(b'"n":', b'"m":')
    elif how == "salt":
        lines[5] = re.sub(rb'"salt":"(.)', lambda m: b'"salt":"%x' % (int(m[1], 16) ^ 1), lines[5])
    elif how == "removed":
        del lines[5]
    elif how == "reordered":
        lines[5], lines[6] = lines[6], lines[5]
    elif how == "inserted":
        lines.insert(5, lines[5])
    parts[name] = b"\n".join(lines)
    if how == "cut":
        parts = {n: data for n, data in parts.items() if n < "events/000000000400" or n[0] == "c"}
    elif how == "unsigned":
        del parts["checkpoint"]
    elif how == "signed late":  # after the events that must be compared with it
        parts["checkpoint"] = parts.pop("checkpoint")
    done = small(audited, write_members(str(audited.folder / "bad.tar"), list(parts.items())))
    assert done.returncode == 1 and "WRONG" in done.stderr, done.stderr


def test_the_small_verifier_rejects_a_lost_tail(audited):  # noqa: F811
    """An archive that is shorter than the kept checkpoint is rejected, even if it is correctly
    signed.
    """
    older = audited.folder / "kept"
    newer = audited.stores.proofs.checkpoint("s")
    parts = [part for part in read_members(audited.archive("log.tar")) if "tile" not in part[0]]
    cut = [
        (name, older.read_bytes() if name == "checkpoint" else data)
        for name, data in parts
        if name < "events/000000000201" or not name.startswith("events")
    ]
    cut = [
        (name, re.sub(rb'"head":\d+', b'"head":200', data) if name == "log.json" else data)
        for name, data in cut
    ]
    tree = TreeBuilder()
    tiles = tree.append([leaf_hash(e.leaf) for e in audited.stores.entries("s", through=200)])
    cut += [(f"tile/{tile.level}/{tile_path(tile.number, 200)}", tiles[tile]) for tile in tiles]
    file = write_members(str(audited.folder / "cut.tar"), cut)
    assert small(audited, file).returncode == 0
    older.write_bytes(newer)
    done = small(audited, file, "--checkpoint", str(older))
    assert done.returncode == 1 and "the log ends at 200" in done.stderr


def test_the_small_verifier_accepts_old_and_new_keys(audited):  # noqa: F811
    """The kept checkpoint has the old key's signature, the archive has the new key's."""
    old, kept = audited.vkey, str(audited.folder / "kept")
    rotate_keys(audited.folder / "keys")
    audited.stores.push("s", push_of(changeset(put("x"))))
    audited.sign()
    file = audited.archive()
    assert small(audited, file, "--checkpoint", kept).returncode == 1
    done = small(audited, file, "--checkpoint", kept, "--key", old)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_small_verifier_is_small():
    """It has about three hundred lines, and imports none of our modules."""
    text = (ROOT / "docs/reference/verify_log.py").read_text("utf-8")
    assert len(text.splitlines()) < 330
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
    assert set(imported) - set(sys.stdlib_module_names) == {"cryptography"}
