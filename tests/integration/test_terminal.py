"""Texts of others never act on a terminal, whichever command prints them."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from foldlog.domain.collections import Proposal
from foldlog.domain.json_schema import JsonSchema
from foldlog.scripts.printable import one_line, printable
from tests import bombs
from tests.conftest import as_service
from tests.helpers import B, changeset, push_of, put

FOLDLOG = str(Path(sys.executable).with_name("foldlog"))
SCRIPTS = Path(__file__).parents[2] / "foldlog/scripts"
#: escape sequences, a bell, C1 controls, DEL, changes of direction, zero widths, tags
HOSTILE = (
    "\x1b]0;pwned\x07\x1b[2J\x9b31m\x90\x9d\x7f\b\r\u202e\u2066\u200f\u061c\u200b\u2060\ufeff\u00ad"
    "\u2028\u2029\U000e0041\u180e"
)
#: what the program itself sends: colours, and the movements of progress bars
OWN = re.compile(r"\x1b\[[0-9;]*[mKAGJ]|\x1b\[\?25[lh]|\r")


def assert_clean(text: str) -> None:
    rest = OWN.sub("", text)
    found = {char for char in rest if char != "\n" and char != "\t" and not char.isprintable()}
    assert not found, (sorted(map(hex, map(ord, found))), rest[-500:])


def on_a_terminal(*words: str, **env: str) -> str:
    """Runs a command with a pseudo terminal as its output, and returns all that it sent."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200", **env},
    )
    os.close(theirs)
    told = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # the end of a pseudo terminal on Linux
            break
        if not piece:
            break
        told += piece
    os.close(ours)
    process.wait(30)
    return told.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


@pytest.fixture
def hostile(stores, database, cluster):
    """A space whose texts are all hostile. The service refuses most of them, so the texts are
    written into the database."""
    stores.register("s", B, name="tablet", by="ada")
    stores.define("s", "tasks", Proposal(JsonSchema({"title": HOSTILE, "type": "object"}), by="a"))
    pushed = put(f"x{HOSTILE}", text=HOSTILE, number=1)
    stores.push("s", push_of(changeset(pushed), changeset(put(f"x{HOSTILE}", text="2"))))
    stores.project()
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE devices SET name = %s", [f"x{HOSTILE}"])
        conn.execute(
            "UPDATE projections SET failing_why = %s, failing_since = now() "
            "WHERE projection = 'master'",
            [f"x{HOSTILE}"],
        )
    return as_service(cluster, database)


def slow(*values: str):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    "words",
    [
        "replay s",
        *slow("replay s --fold", "replay s --conflicts", "collections s"),
        "collections s --json",
        "device list s",
        "status",
        *slow("status --json", "export s", f"replay {HOSTILE}", HOSTILE),
    ],
    ids=lambda words: words.split("\x1b")[0].strip() or "unknown",
)
def test_commands_on_a_terminal(hostile, words):
    """Each command prints the hostile texts, escaped, and nothing else acts on the terminal."""
    name, *rest = words.split(" ")
    is_known = name != HOSTILE
    url = ["--database-url", hostile] if is_known else []
    told = on_a_terminal(FOLDLOG, name, *rest, *url)
    assert told
    assert_clean(told)


def test_json_keeps_its_meaning(hostile):
    """The escapes are those of JSON, so a program reads what was stored, also through a pipe."""
    for words in (["replay", "s"], ["replay", "s", "--fold"], ["collections", "s", "--json"]):
        ran = bombs.run(FOLDLOG, *words, "--database-url", hostile)
        assert ran.code == 0, ran.err
        assert_clean(ran.out)
        lines = [json.loads(line) for line in ran.out.splitlines()]
        assert any(HOSTILE in text for line in lines for text in _texts(line))


def _texts(document: object) -> list[str]:
    if isinstance(document, str):
        return [document]
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        return [text for item in document for text in _texts(item)]
    return []


def test_files_that_are_hostile(tmp_path):
    """Names of members, keys, origins, and the name of the file itself."""
    files = {
        "name": bombs.FRONT + bombs.file("events/\x07", b""),
        "key": bombs.FRONT[:-512]
        + bombs.file("keys.txt", f"{HOSTILE}+00+AQ==\n".encode())
        + bombs.file("checkpoint", f"a\n1\n{bombs.ROOT}\n\n— x AAAAAAAA\n".encode()),
        "origin": bombs.FRONT
        + bombs.file("checkpoint", f"{HOSTILE}\n1\n{bombs.ROOT}\n\n— x AAAAAAAA\n".encode()),
        "lines": bombs.header() + bombs.raw_line(f'{{"seq":1,"kind":"{HOSTILE}"}}'.encode()),
        "header": bombs.header().replace(b'"space":"s"', f'"space":"{HOSTILE}"'.encode()),
        HOSTILE.replace("/", ""): b"x",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        for words in (["verify", "--file"], ["import"], ["replica"]):
            assert_clean(on_a_terminal(FOLDLOG, *words, str(tmp_path / name)))
        small = str(SCRIPTS.parents[1] / "docs/reference/verify_log.py")
        key = "x+48f9887e+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        assert_clean(on_a_terminal(sys.executable, small, str(tmp_path / name), "--key", key))
        assert_clean(on_a_terminal(FOLDLOG, "verify", "--file", str(tmp_path / f"no{name}")))


def test_errors_and_logs():
    """A traceback, a log line in text form and one in JSON, and a warning."""
    script = """
import sys, warnings
from foldlog.scripts.printable import escape_output
escape_output()
from foldlog.api.http.logging import configure_logging
import structlog
configure_logging(sys.argv[1])
text = sys.argv[2].encode().decode("unicode_escape")
structlog.get_logger("x").error(text, name=text)
import logging
logging.getLogger(text[-1]).error("%s", text)
warnings.warn(text)
raise ValueError(text)
"""
    text = HOSTILE.encode("unicode_escape").decode()
    for form in ("console", "json"):
        told = on_a_terminal(sys.executable, "-c", script, form, text)
        assert "ValueError" in told
        assert_clean(told)
    first = told.splitlines()[0]
    assert json.loads(first)["event"] == HOSTILE


@pytest.mark.parametrize("text", ["plain", "Müller – ½ 日本 \u3000x", "👍", "tab\tline\n", ""])
def test_other_texts_stay(text):
    """Letters, blanks and pictures of all scripts are printed as they are."""
    assert printable(text) == text


def test_every_character_that_acts_is_escaped():
    """No character of Unicode passes that Python calls unprintable, but blanks."""
    for number in [*range(0x3000), *range(0xD800, 0xE010), 0xFEFF, 0xFFFB, 0xE0001, 0xE007F]:
        shown = printable(chr(number))
        assert shown in ("\n", "\t") or shown.isprintable() or shown.isspace()
        if shown not in ('"', "\\"):
            assert json.loads(f'"{shown}"', strict=False) == chr(number)
    assert one_line("a\nb\x1b") == "a b\\u001b"


def test_all_output_goes_through_the_console():
    """No other module writes to standard output: `say` and the consoles are the ways to print."""
    allowed = {"console.py", "printable.py", "transfer.py", "rebuild.py", "demo.py"}
    for path in SCRIPTS.rglob("*.py"):
        if path.name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "click.echo", "click.secho"), path
                assert not called.startswith(("sys.stdout.buffer", "sys.stdout.write")), path
