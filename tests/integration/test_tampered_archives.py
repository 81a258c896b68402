"""Every tampering of an archive is refused by `verify --file`, `import` and the small verifier.

The tamperings are generated: of each member, of each field of the lines and of the header, of
each line of the keys and of the checkpoint, of bytes in the middle of files, and of the tiles.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner

from foldlog.domain.notes import Signer
from foldlog.infrastructure.signing.keys import make_keys, rotate_keys
from foldlog.scripts.exports import archive as archive_module
from foldlog.scripts.main import cli
from tests.archives import read_members, write_members
from tests.helpers import changeset, push_of, put
from tests.integration.test_projector import random_history
from tests.signing import SignedSpace

SMALL = Path(__file__).parents[2] / "docs/reference/verify_log.py"
QUICK = 40
#: Tamperings that no verifier can see, each with the reason. proofs.md has the same list.
UNSEEN = {
    "README.txt: ": "no key signs this text, and no verifier believes it",
    "keys.txt: keys left out": "no key signs this list; the auditor has the keys from elsewhere",
    "keys.txt: line -": "no key signs this list; the auditor has the keys from elsewhere",
    "keys.txt: line 0 twice": "a key that is there twice decides nothing",
    "keys.txt: line 1 twice": "a key that is there twice decides nothing",
    "keys.txt: line 1 swapped": "the order of the keys decides nothing",
    "keys.txt: another key": "no key signs this list; the auditor has the keys from elsewhere",
    "checkpoint: line 4 twice": "the same signature again means nothing",
    "checkpoint: another signature": "a signature by an unknown key means nothing",
}
ANOTHER = Signer("someone.example", bytes(32))
Members = list[tuple[str, bytes]]


class Tampering(NamedTuple):
    """A changed archive. `seq` is the first wrong event, if one can be named."""

    what: str
    members: Members
    seq: int | None = None


def swap(items: list, one: int, other: int) -> list:
    items = list(items)
    items[one], items[other] = items[other], items[one]
    return items


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields other values of the same type, for each place in a JSON value."""
    if isinstance(value, dict):
        for key, found in value.items():
            yield f"-{key}", {k: v for k, v in value.items() if k != key}
            yield f"renamed {key}", {f"{k}x" if k == key else k: v for k, v in value.items()}
            for what, other in changed(found):
                yield f"{key}.{what}", {**value, key: other}
        if len(value) > 1:
            yield "reordered", dict(reversed(value.items()))
    elif isinstance(value, list):
        if value:
            yield "[:-1]", value[:-1]
            yield "twice", [*value, value[-1]]
        if len(value) > 1 and value[0] != value[-1]:
            yield "swapped", swap(value, 0, -1)
        for n, found in enumerate(value[:3]):
            for what, other in changed(found):
                yield f"{n}.{what}", [*value[:n], other, *value[n + 1 :]]
    elif isinstance(value, bool):
        yield "!", not value
    elif isinstance(value, int | float):
        yield "+1", value + 1
        yield "-1", value - 1
    elif isinstance(value, str):
        yield "+x", value + "x"
        if value:
            yield "cut", value[:-1]
            last = "0" if value[-1] != "0" else "1"
            yield "flipped", value[:-1] + last
    else:
        yield "null to 0", 0


def of_json(line: bytes) -> Iterator[tuple[str, bytes]]:
    for what, other in changed(msgspec.json.decode(line)):
        yield what, msgspec.json.encode(other)


def of_lines(lines: list[bytes]) -> Iterator[tuple[str, list[bytes], int]]:
    """Yields changes of the order of lines, each with the first wrong line."""
    for n in {0, len(lines) // 2, len(lines) - 1}:
        yield f"-{n}", lines[:n] + lines[n + 1 :], n
        yield f"{n} twice", [*lines[:n], lines[n], *lines[n:]], n + 1
        yield f"{n} cut", [*lines[:n], lines[n][:-2], *lines[n + 1 :]], n
        yield f"{n} empty", [*lines[:n], b"", *lines[n:]], n
        if n:
            yield f"{n} swapped", swap(lines, n - 1, n), n - 1


def of_bytes(data: bytes) -> Iterator[tuple[str, bytes]]:
    for place in sorted({0, len(data) // 3, len(data) // 2, len(data) - 1}):
        yield f"flipped at {place}", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        yield f"cut at {place}", data[:place]
    yield "longer", data + data[-32:]


def is_whole_lines(data: bytes) -> bool:
    return not data or data.endswith(b"\n")


def kind_of(line: bytes) -> bytes:
    """Tells the kinds of events apart, and those with erased operations or with a verdict."""
    found = re.search(rb'"kind":"([^"]*)"', line)
    erased, refused = b'"erased":"' in line, b'"refused"' in line or b'"code":"' in line
    return b"%b %d %d" % (found[1] if found else b"", erased, refused)


def tamperings(members: Members) -> Iterator[Tampering]:
    """Yields changed archives, each different from the given one."""

    def replaced(n: int, data: bytes) -> Members:
        return [*members[:n], (members[n][0], data), *members[n + 1 :]]

    seen: set[bytes] = set()
    for n, (name, data) in enumerate(members):
        yield Tampering(f"{name} removed", members[:n] + members[n + 1 :])
        yield Tampering(f"{name} twice", [*members[:n], members[n], *members[n:]])
        yield Tampering(f"{name} renamed", [*members[:n], (name + "x", data), *members[n + 1 :]])
        if n:
            moved = f"{members[n - 1][0]} moved behind {name}"
            yield Tampering(moved, swap(members, n - 1, n))
        if name == "log.json":
            for what, other in of_json(data):
                if what not in ("reordered",):
                    yield Tampering(f"{name}: {what}", replaced(n, other))
        elif name.startswith("events/"):
            first, lines = int(name[7:19]), data.splitlines(keepends=False)
            lines = data.removesuffix(b"\n").split(b"\n")
            for what, changed_lines, at in of_lines(lines):
                joined = b"\n".join(changed_lines) + b"\n"
                yield Tampering(f"{name}: line {what}", replaced(n, joined), first + at)
            for k, line in enumerate(lines):
                place = random.Random(first + k).randrange(len(line))
                flipped = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
                joined = b"\n".join([*lines[:k], flipped, *lines[k + 1 :]]) + b"\n"
                told = f"seq {first + k}: byte {place} flipped"
                yield Tampering(told, replaced(n, joined), first + k)
                if kind_of(line) in seen:
                    continue
                seen.add(kind_of(line))
                for what, other in of_json(line):
                    joined = b"\n".join([*lines[:k], other, *lines[k + 1 :]]) + b"\n"
                    told = f"seq {first + k}: {kind_of(line)!r} {what}"
                    yield Tampering(told, replaced(n, joined), first + k)
        else:
            for what, other in of_bytes(data):
                if name == "keys.txt" and what.startswith("cut") and is_whole_lines(other):
                    what = "keys left out"
                yield Tampering(f"{name}: {what}", replaced(n, other))
        if name in ("keys.txt", "checkpoint"):
            lines = data.removesuffix(b"\n").split(b"\n")
            for what, changed_lines, _ in of_lines(lines):
                joined = b"\n".join(changed_lines) + b"\n"
                yield Tampering(f"{name}: line {what}", replaced(n, joined))
        if name == "keys.txt":
            more = f"{ANOTHER.verifier().vkey}\n".encode()
            yield Tampering(f"{name}: another key", replaced(n, data + more))
        elif name == "checkpoint":
            more = ANOTHER.sign("another text\n").line.encode()
            yield Tampering(f"{name}: another signature", replaced(n, data + more))


@pytest.fixture
def signed(stores, database, tmp_path, monkeypatch):
    """A log with several kinds of events, refused changesets, erasures, and several tiles."""
    monkeypatch.setenv("FOLDLOG_DATA", str(tmp_path))
    monkeypatch.setattr(archive_module, "PART_EVENTS", 100)
    make_keys(tmp_path / "keys")
    rotate_keys(tmp_path / "keys")
    random_history(stores, "s", seed=1, pushes=40)
    stores.push("s", push_of(*[changeset(put(str(n), n=n, text="t")) for n in range(300)]))
    stores.erase("s", [("tasks", "7"), ("tasks", "8")], reason="asked to")
    space = SignedSpace(stores, tmp_path)
    space.sign()
    return space


def invoked(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(words))
    return result.exit_code, " ".join(result.output.split())


def small_verifier() -> Any:
    spec = importlib.util.spec_from_file_location("small_verifier", SMALL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_small(module: Any, file: str, key: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["verify_log.py", file, "--key", key])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module.main()
    except SystemExit as exc:
        return 1, str(exc.code)
    return 0, ""


def refusals(signed, monkeypatch, sample: int | None, start: str = "") -> list[str]:
    """Runs the three commands on each tampered archive. Returns a line for each wrong answer."""
    url = signed.stores.datastore.url
    whole = str(signed.folder / "log.tar")
    assert invoked("export", "s", "--archive", "-o", whole, "--database-url", url)[0] == 0
    members = read_members(whole)
    assert sum(name.startswith("tile/0/") for name, _ in members) > 1
    module, key = small_verifier(), signed.vkey
    again = write_members(signed.folder / "again.tar", members)
    assert invoked("verify", "--file", again, "--key", key)[0] == 0
    assert run_small(module, again, key, monkeypatch) == (0, "")
    cases = [case for case in tamperings(members) if case.what.startswith(start)]
    if sample is not None:
        cases = random.Random(sample).sample(cases, sample)
    passed = []
    for case in cases:
        file = write_members(signed.folder / "bad.tar", case.members)
        verify = invoked("verify", "--file", file, "--key", key)
        if case.what.startswith(tuple(UNSEEN)):
            continue
        imported = invoked("import", file, "--space", "t", "--key", key, "--database-url", url)
        small = run_small(module, file, key, monkeypatch)
        for who, (code, told) in {"verify": verify, "import": imported, "small": small}.items():
            if code == 0:
                passed.append(f"{who}: {case.what}")
            elif not names_the_tile(case, told):
                passed.append(f"{who}: {case.what}: {told} names no tile")
            if "Traceback" in told or "internal" in told:
                passed.append(f"{who}: {case.what}: {told}")
        # An import takes no unsigned tail, so it says this before it reads the events.
        if "--unsigned" not in imported[1] and reason(verify[1]) != reason(imported[1]):
            passed.append(f"{case.what}: {verify[1]} is not {imported[1]}")
        seqs = re.findall(r"seq (\d+): ", verify[1])
        # A later time of an event is seen at the next event, which is then too early.
        near = 1 if "received_at" in case.what or "flipped" in case.what else 0
        if case.seq is not None and seqs and not 0 <= int(seqs[0]) - case.seq <= near:
            passed.append(f"{case.what}: {verify[1]}")
    return passed


def names_the_tile(case: Tampering, told: str) -> bool:
    """Tells whether a refusal names a tile that was changed: `tile/1/000.p/2` or `tile 1/0`."""
    tiles = re.findall(r"tile/(\d)/([\dx/]+)", case.what)
    names = {f"{level}/{int(re.sub('[x/]', '', path))}" for level, path in tiles}
    told = re.sub(r"tile/(\d)/0*(\d+)", r"tile \1/\2", told)
    return not names or any(f"tile {name}" in told for name in names)


def reason(output: str) -> str:
    """The sentence of a refusal, without the words of the command around it."""
    output = re.sub(r"^.*?(wrong|error): ", "", output)
    output = re.sub(r" database: host=.*$", "", output)
    return re.sub(r" \([a-z-]+\)$", "", output).strip()


def test_a_sample_of_tampered_archives_is_refused(signed, monkeypatch):
    """The three agree, and `verify` and `import` say the same sentence."""
    passed = refusals(signed, monkeypatch, QUICK)
    assert not passed, "\n".join(passed)


def test_what_no_key_signs_cannot_be_seen(signed, monkeypatch):
    """A tampering on the short list is accepted, or it leaves the list."""
    url, whole = signed.stores.datastore.url, str(signed.folder / "log.tar")
    assert invoked("export", "s", "--archive", "-o", whole, "--database-url", url)[0] == 0
    cases = [c for c in tamperings(read_members(whole)) if c.what.startswith(tuple(UNSEEN))]
    assert all(any(case.what.startswith(start) for case in cases) for start in UNSEEN)
    for case in cases:
        file = write_members(signed.folder / "bad.tar", case.members)
        verified = invoked("verify", "--file", file, "--key", signed.vkey)
        small = run_small(small_verifier(), file, signed.vkey, monkeypatch)
        assert (verified[0], small[0]) == (0, 0), (case.what, verified, small)


@pytest.mark.parametrize("level", [0, 1])
def test_each_wrong_tile_is_named(signed, monkeypatch, level):
    """A tile of each level is taken out, doubled, moved and changed."""
    passed = refusals(signed, monkeypatch, None, f"tile/{level}/")
    assert not passed, "\n".join(passed)


@pytest.mark.slow
def test_every_tampered_archive_is_refused(signed, monkeypatch):
    """The whole product of members, fields and changes."""
    passed = refusals(signed, monkeypatch, None)
    assert not passed, "\n".join(passed)
