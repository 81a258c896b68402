"""The demo, run as a person runs it, and what it tells that person to type next."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foldlog.scripts.demo.history import read_history, tree_of
from foldlog.scripts.server.process import environment, serving

FOLDLOG = str(Path(sys.executable).with_name("foldlog"))


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [FOLDLOG, "demo", "--data", str(folder)]
    wide = {**environment(), "COLUMNS": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, env=wide, cwd=folder.parent, timeout=600
    )


@pytest.mark.slow
def test_the_demo_and_what_it_says_to_type_next(data_folder):
    """
    Every check of the demo holds, with exit code 0. Each command that it prints works as printed.
    A second demo on the same folder, also after a change of one's own, holds as well.
    """
    folder = data_folder / "demo"
    first = run_demo(folder)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("  ok  ") == 7 and "  NO  " not in first.stdout
    assert "23 of 23 are equal to git's tree" in first.stdout

    steps = re.findall(r"^  # (.+)\n  (\S.*)$", first.stdout, re.MULTILINE)
    assert len(steps) == 7
    (_, serve), *others = steps
    assert serve.startswith(FOLDLOG)
    port = int(re.findall(r":(\d+)/", others[0][1])[0])
    with serving([FOLDLOG], str(folder), port, {"FOLDLOG_ACCESS": "tokens"}):
        for title, command in others:
            done = subprocess.run(
                ["bash", "-c", command.replace("curl ", "curl --fail-with-body -sS ")],
                capture_output=True,
                text=True,
                env=environment(),
            )
            assert done.returncode == 0, f"{title}: {done.stdout}{done.stderr}"
            if "curl" in command:
                assert json.loads(done.stdout)["head"] >= 2_252

    again = run_demo(folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2,252 were there from an earlier run" in again.stdout


def test_a_demo_that_goes_wrong_says_so(data_folder):
    """A service that cannot start is told with the end of its log, and exit code 3."""
    folder = data_folder / "demo"
    folder.mkdir()
    (folder / "postgres").write_text("this is no database")
    done = run_demo(folder)
    assert done.returncode == 3
    assert "did not come up" in done.stderr


def test_the_history_is_the_one_with_the_known_answer():
    """The first tree of the shipped history can be told by hand from its first changesets."""
    commits = read_history()
    assert len(commits) == 2_252 and len({commit.device for commit in commits}) == 125
    number = next(n for n, commit in enumerate(commits) if commit.tree is not None)
    fields: dict[str, dict] = {}
    for commit in commits[: number + 1]:
        for op in commit.ops:
            if op["op"] == "delete":
                del fields[op["id"]]
            else:
                fields[op["id"]] = {**fields.get(op["id"], {}), **op["fields"]}
    assert tree_of(fields.values()) == commits[number].tree
