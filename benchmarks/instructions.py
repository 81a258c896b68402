"""Counts the instructions of the service's process with callgrind, a figure free of noise.

`mix.py` does a fixed mix of work in one process, each step between two dumps. The count leaves out
PostgreSQL, the kernel and uvicorn.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from foldlog.scripts.server.process import environment

from .bench import UNLIMITED, Bench
from .cells import Row
from .errors import BenchmarkFailed, Skipped
from .figures import Figure
from .filling import announce, fill
from .mix import Order

CALLGRIND = ("valgrind", "--tool=callgrind", "--quiet")
DUMP = "callgrind_control"
LOG = "instructions"
_TOTALS = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


class _Counted:
    """Runs a mix for a row and its limit. A repeated question for the same step runs a new mix."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self._figures: dict[str, Figure] = {}
        events = bench.scale.counted_events
        fill(bench.url, LOG, events)
        announce(bench.database, LOG, events)
        bench.settle(LOG)

    def take(self, name: str) -> Figure:
        if name not in self._figures:
            self._figures = dict(self._mix())
        return self._figures.pop(name)

    def _mix(self) -> Iterator[tuple[str, Figure]]:
        scale = self._bench.scale
        space = self._bench.new_space()
        order = Order(self._bench.url, LOG, scale.counted_events, space, scale.counted_calls)
        with tempfile.TemporaryDirectory() as folder, _started(order, Path(folder)) as process:
            assert process.stdin and process.stdout
            for line in process.stdout:
                if not line.startswith("["):
                    continue  # a line of the request log
                name, number = json.loads(line)
                instructions = _dumped(process.pid, Path(folder))
                if name != "ready":
                    yield name, Figure(instructions / number / 1_000)
                process.stdin.write("\n")
                process.stdin.flush()
            if process.wait():
                raise BenchmarkFailed((Path(folder) / "stderr").read_text("utf-8", "replace"))


@contextmanager
def _started(order: Order, folder: Path) -> Iterator[subprocess.Popen[str]]:
    for program in (CALLGRIND[0], DUMP):
        if shutil.which(program) is None:
            raise Skipped(f"{program} is not installed")
    mix = [sys.executable, "-m", "benchmarks.mix", msgspec.json.encode(order).decode()]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*CALLGRIND, f"--callgrind-out-file={folder}/dump", *mix],
            env={**environment(), **UNLIMITED, "PYTHONHASHSEED": "0"},
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _dumped(pid: int, folder: Path) -> int:
    """Returns the instructions since the last dump, and resets the count."""
    before = set(folder.iterdir())
    done = subprocess.run([DUMP, "-d", str(pid)], capture_output=True, text=True, check=False)
    new = [path for path in folder.iterdir() if path not in before]
    found = [_TOTALS.search(path.read_text("utf-8", "replace")) for path in new]
    if len(found) != 1 or found[0] is None:
        raise BenchmarkFailed(f"callgrind made no dump: {done.stdout}{done.stderr}")
    return int(found[0][1])


def counted(bench: Bench, name: str) -> Figure:
    return bench.once(_Counted).take(name)


def _row(title: str, name: str, limits: dict[str, str]) -> Row:
    return Row(
        "instructions",
        f"instructions {title}",
        "thousand",
        partial(counted, name=name),
        {limit: partial(counted, name=of) for limit, of in limits.items()},
        less_is_better=True,
        is_counted=True,
    )


ECHOES = {"Flask echo, in process": "flask", "bare ASGI echo, in process": "bare"}
ROWS = (
    _row("a push of 1", "push1", ECHOES),
    _row("a changeset in a push of 100", "push100", {"JSON decoded and encoded": "json"}),
    _row("a pulled event", "pull", {"SELECT and join, in process": "select"}),
    _row("an idle poll", "poll", {}),
    _row("a rebuilt event", "rebuild", {"event decoded": "decode"}),
)
