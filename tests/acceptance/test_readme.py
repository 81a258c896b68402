"""The README's five minutes, run: each command as it stands there, each answer as it is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foldlog.scripts.server.process import environment, reserve_port, serving

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(sh serve|sh|json)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDLOG = str(Path(sys.executable).with_name("foldlog"))


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text("utf-8").partition("## Five minutes")[2])


def assert_told(told, found, path="$"):
    """`"..."` stands for whatever is there; objects may have more members than are shown."""
    if told == "...":
        assert found is not None, path
    elif isinstance(told, dict):
        assert isinstance(found, dict) and told.keys() <= found.keys(), f"{path}: {found}"
        for name, value in told.items():
            assert_told(value, found[name], f"{path}.{name}")
    elif isinstance(told, list):
        assert isinstance(found, list) and len(told) == len(found), f"{path}: {found}"
        for number, value in enumerate(told):
            assert_told(value, found[number], f"{path}[{number}]")
    else:
        assert told == found, path


@pytest.mark.seconds(30)
def test_the_five_minutes(data_folder):
    """Typed as printed, but for the port and the folder, every answer is the printed one."""
    port = reserve_port()
    answered = 0
    output = ""
    with serving([FOLDLOG], str(data_folder / "my-data"), port=port):
        for kind, text in blocks():
            if kind == "sh":
                command = (
                    text.replace("localhost:3653", f"localhost:{port}")
                    .replace(".venv/bin/foldlog", FOLDLOG)
                    .replace("curl -s", "curl -sS --fail-with-body")
                )
                done = subprocess.run(
                    ["bash", "-euc", command],
                    capture_output=True,
                    text=True,
                    cwd=data_folder,
                    env=environment(),
                )
                assert done.returncode == 0, done.stdout + done.stderr
                output = done.stdout
            elif kind == "json":
                assert_told(json.loads(text), json.loads(output))
                answered += 1
    assert answered == 6


def test_the_two_commands_are_there():
    """The first block of the README names targets that the Makefile has."""
    makefile = (README.parent / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README.read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    path = README.parent / page
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"
