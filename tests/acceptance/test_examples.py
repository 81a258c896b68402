"""Every example of the documentation, run as printed, with tokens on, against one real service.

The pages run in the order of `PAGES`, in the folder where a reader works. The README's own commands
start the service, and later pages go on with its space `home`. The only changes to a block are
the port numbers, because the tests of a machine run side by side.

A block of `sh`, `python` or `sql` runs. A block of `json` or `text` that follows one is its output.
Any other block needs a comment before it: `<!-- not run: REASON -->`. A block after
`<!-- background -->` keeps running until the test ends.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from foldlog.scripts.server.process import environment, is_ready, reserve_port

ROOT = Path(__file__).parents[2]
#: The pages that run first, and the page that erases the records of the others
FIRST, LAST = ["README.md", "docs/tutorial.md"], ["docs/how-to/erase.md"]
OTHERS = {
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
} - {*FIRST, *LAST}
PAGES = [*FIRST, *sorted(OTHERS), *LAST]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN = {"sh", "python", "sql"}
OUTPUT = {"json", "text"}
READY_SECONDS_MAX = 60
BLOCK_SECONDS_MAX = 120


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    kind: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("kind")) + 1,
            found["kind"],
            found["text"],
            found["mark"] or "",
        )
        for found in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_not(page):
    """Fences are complete, and an unmarked block runs or is the output of one that runs."""
    text = (ROOT / page).read_text("utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(blocks_of(page)), page
    before = None
    for block in blocks_of(page):
        is_marked = block.mark == "background" or re.match(r"not run: \S.{8,}", block.mark)
        is_output = block.kind in OUTPUT and before is not None and before.kind in RUN
        assert is_marked or block.kind in RUN or is_output, f"{block}: no reason to be left out"
        before = None if block.mark.startswith("not run") else block


def assert_output(printed: Any, found: Any, path: str = "$") -> None:
    """Compares JSON. `"..."` stands for any value; an object may have more members."""
    if printed == "...":
        assert found is not None, path
    elif isinstance(printed, dict):
        assert isinstance(found, dict) and printed.keys() <= found.keys(), f"{path}: {found}"
        for name, value in printed.items():
            assert_output(value, found[name], f"{path}.{name}")
    elif isinstance(printed, list):
        assert isinstance(found, list) and len(printed) == len(found), f"{path}: {found}"
        for number, value in enumerate(printed):
            assert_output(value, found[number], f"{path}[{number}]")
    else:
        assert printed == found, path


def last_value(output: str) -> Any:
    """Returns the last of the JSON values that were printed."""
    rest, value = output.strip(), None
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:].lstrip()
    return value


@dataclass
class Reader:
    """Types the blocks of the pages, in one folder and with one set of exported variables."""

    folder: Path
    ports: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    output: str = ""
    names: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "exported.sh"

    def env(self) -> dict[str, str]:
        given = {**environment(), "FOLDLOG_PORT": self.ports["3653"]}
        given.pop("FOLDLOG_ACCESS", None)
        return given

    def typed(self, text: str) -> str:
        for printed, real in self.ports.items():
            text = re.sub(rf"\b{printed}\b", real, text)
        return text.replace("curl -s", "curl -sS --fail-with-body")

    def read(self, block: Block) -> None:
        if block.mark.startswith("not run"):
            return
        if block.mark == "background":
            self.start(self.typed(block.text))
        elif block.kind == "python":
            self.run_python(self.typed(block.text))
        elif block.kind == "json":
            assert_output(json.loads(block.text), last_value(self.output))
        elif block.kind == "text":
            pattern = re.escape(block.text.strip()).replace(re.escape("..."), ".*")
            assert re.fullmatch(pattern, self.output.strip(), re.DOTALL), self.output
        elif block.kind == "sql":
            self.run_shell(
                f"foldlog pg --data my-data psql -v ON_ERROR_STOP=1 <<'SQL'\n{block.text}SQL\n"
            )
        else:
            self.run_shell(self.typed(block.text))

    def run_shell(self, command: str) -> None:
        load = f"[ ! -e {self.state} ] || . {self.state}\n"
        keep = f"\nexport -p > {self.state}\n"
        done = subprocess.run(
            ["bash", "-euc", f"{load}{command}{keep}"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env(),
            timeout=BLOCK_SECONDS_MAX,
        )
        self.output = done.stdout
        assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"

    def run_python(self, code: str) -> None:
        exported = {}
        if self.state.exists():
            listed = subprocess.run(
                ["bash", "-c", f". {self.state}; env -0"], capture_output=True, check=True
            ).stdout
            pairs = (part.partition(b"=") for part in listed.split(b"\0") if part)
            exported = {name.decode(): value.decode() for name, _, value in pairs}
        before = dict(os.environ)
        os.environ.update(exported)
        try:
            with chdir(self.folder):
                exec(compile(code, "<example>", "exec"), self.names)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(self, command: str) -> None:
        found = re.search(r"--port (\d+)", command)
        port = found[1] if found else self.ports["3653"]
        with (self.folder / f"serve-{port}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    ["bash", "-euc", command],
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=self.env(),
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not is_ready(f"http://127.0.0.1:{port}"):
            assert time.monotonic() < deadline, Path(log.name).read_text("utf-8")[-2_000:]
            time.sleep(0.1)

    def stop(self) -> None:
        for process in reversed(self.running):
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.running:
            process.wait(60)


@pytest.fixture
def reader(data_folder) -> Iterator[Reader]:
    """A folder like a clone of the repository after `make install`, without a service."""
    (data_folder / ".venv").symlink_to(sys.prefix)
    (data_folder / "docs").symlink_to(ROOT / "docs")
    ports = {printed: str(reserve_port()) for printed in ("3653", "3654")}
    one = Reader(data_folder, ports)
    try:
        yield one
    finally:
        one.stop()


@pytest.mark.slow
def test_every_example_works(reader):
    """All pages, one after another. A page ends at its first failure; all failures are listed."""
    failures = []
    count = 0
    for page in PAGES:
        reader.names = {"__name__": "__main__"}
        for block in blocks_of(page):
            try:
                reader.read(block)
                count += not block.mark.startswith("not run")
            except (AssertionError, Exception) as exc:
                failures.append(f"{block}: {type(exc).__name__}: {exc}")
                break
    assert not failures, "\n\n".join(failures)
    assert count > 60
