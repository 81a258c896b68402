"""The demo, run as a user runs it, and the commands that it prints for the user."""

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


@pytest.mark.seconds(90)
@pytest.mark.slow
def test_the_demo_and_the_commands_that_it_prints(data_folder):
    """
    All checks of the demo hold, and its exit code is 0. Each printed command works as printed.
    A second demo on the same folder, after a change by the user, holds too.
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


def test_a_failing_demo_says_why(data_folder):
    """If the service fails to start, the demo prints the end of its log and exits with 3."""
    folder = data_folder / "demo"
    folder.mkdir()
    (folder / "postgres").write_text("a file in the place of the database")
    done = run_demo(folder)
    assert done.returncode == 3
    assert "did not come up" in done.stderr


def test_the_history_is_the_one_with_the_known_answer():
    """A hand-written fold of the first changesets makes the first tree of the shipped history."""
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
