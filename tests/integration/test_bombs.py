"""A small hostile file never takes the memory of a command that reads it, and is refused clearly.

`tests/bombs.py` makes the files. Each command runs as a process of its own, whose peak memory is
measured.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psycopg
import pytest

from tests import bombs
from tests.conftest import as_service

FOLDLOG = str(Path(sys.executable).with_name("foldlog"))
SMALL = str(Path(__file__).parents[2] / "docs/reference/verify_log.py")
#: a valid key, of another signer
KEY = "x+48f9887e+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

#: One example of each kind for `make test`; the others are slow.
QUICK = {"foreign-before", "long-name", "endless-line", "value-of-digits", "gzip-members"}
#: files that are valid as far as this command can know
VALID = {
    ("verify", "full-events"),
    ("verify", "schema"),
}


def cases(*groups):
    for group in groups:
        for name in group:
            marks = [] if name in QUICK else [pytest.mark.slow]
            yield pytest.param(name, marks=marks, id=name)


def write(path: Path, name: str) -> None:
    if name in bombs.ARCHIVES:
        bombs.write_archives(path, name)
    elif name in bombs.LINES:
        bombs.write_lines(path, name)
    else:
        bombs.OTHERS[name](path)


def check(ran: bombs.Ran, *, is_valid: bool = False) -> None:
    """The command stays within its memory, and says one clear sentence with a stable code."""
    assert ran.peak_bytes < bombs.PEAK_BYTES_MAX, ran.peak_bytes
    assert "Traceback" not in ran.err, ran.err
    assert "MemoryError" not in ran.err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ran.out + ran.err)
    if is_valid:
        assert ran.code == 0, ran.err
        return
    assert ran.code in (1, 3)
    # The last line names the database, for the commands that open one.
    told = [line for line in ran.err.splitlines() if not line.startswith("database: ")][-1]
    assert re.search(r"^(wrong: |WRONG: |error: .*\((invalid-export|[a-z-]+)\)$)", told), ran.err
    assert len(told) < 600


@pytest.mark.parametrize("name", [*cases(bombs.ARCHIVES, bombs.LINES, bombs.OTHERS)])
@pytest.mark.seconds(5)
def test_commands_refuse_a_bomb(name, tmp_path, database, cluster):
    """`verify --file`, `import` and the small verifier, one after another."""
    path, url = tmp_path / "bomb", as_service(cluster, database)
    write(path, name)
    check(bombs.run(FOLDLOG, "verify", "--file", str(path)), is_valid=("verify", name) in VALID)
    words = ("import", str(path), "--unsigned", "--space", "t", "--database-url", url)
    check(bombs.run(FOLDLOG, *words), is_valid=("import", name) in VALID)
    with psycopg.connect(url) as conn:
        stored = conn.execute("SELECT importing FROM spaces WHERE space = 't'").fetchall()
    assert stored == ([(False,)] if ("import", name) in VALID else [])
    check(bombs.run(sys.executable, SMALL, str(path), "--key", KEY))


@pytest.mark.slow
def test_a_bomb_comes_through_a_pipe(tmp_path):
    """Standard input is read within the same limits."""
    write(tmp_path / "bomb", "endless-header")
    check(bombs.run(FOLDLOG, "verify", "--file", "-", stdin=tmp_path / "bomb"))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "zeros" else [pytest.mark.slow])
    for name in bombs.NOTES
])  # fmt: skip
def test_a_hostile_checkpoint_is_refused(name, tmp_path):
    """`--checkpoint` of `verify`, of `import` and of the small verifier."""
    log, note = tmp_path / "log.tar", tmp_path / "note"
    log.write_bytes(bombs.FRONT + bombs.file(bombs.EVENTS, bombs.note_line(1)) + bombs.END)
    bombs.NOTES[name](note)
    given = ("--checkpoint", str(note), "--key", KEY)
    ran = bombs.run(FOLDLOG, "verify", "--file", str(log), *given)
    check(ran)
    ran = bombs.run(FOLDLOG, "import", str(log), *given, "--data", str(tmp_path / "data"))
    if name != "folder":  # click refuses a folder
        check(ran)
    assert not (tmp_path / "data").exists()
    check(bombs.run(sys.executable, SMALL, str(log), *given))


def test_keys_of_an_archive_that_are_no_keys(tmp_path):
    """The keys that an archive brings are as hostile as the rest."""
    log = tmp_path / "log.tar"
    note = bombs._note(f"{bombs.ORIGIN}\n1\n{bombs.ROOT}\n")
    keys = bombs.file("keys.txt", b"\x1b[2J+\xff+A==\n")
    front = bombs.file("log.json", bombs.header()) + keys + bombs.file("checkpoint", note)
    log.write_bytes(front + bombs.file(bombs.EVENTS, bombs.note_line(1)) + bombs.END)
    check(bombs.run(FOLDLOG, "verify", "--file", str(log)))
