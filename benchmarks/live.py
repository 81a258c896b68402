"""Waiting clients: their memory in the server, and the delay until an event reaches them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import psutil

from foldlog.scripts.server.process import serving

from .bench import COMMAND, UNLIMITED, Bench, echoing, port_of, resident_mb, web_workers
from .cells import Row
from .connection import fetch, request
from .echo import ANNOUNCE, STREAM
from .errors import BenchmarkFailed
from .figures import Figure
from .streams import Arrivals, Task
from .workload import Workload

PUSH = "/v1/spaces/{space}/changesets"
FOLLOW = "/v1/spaces/{space}/events/stream?after=1"
WAIT = "/v1/spaces/{space}/events?after=1&wait=60"
SPACE = "held"
#: memory is steady if it grows by less than this in so many seconds
SETTLED_MB, SETTLED_SECONDS, SETTLE_SECONDS_MAX = 1.0, 2.0, 30.0
WARM_STREAMS = 20


def held(bench: Bench, path: str, is_silent: bool) -> Figure:
    """The memory of one web worker for each waiting client."""
    # A separate service with one worker, whose memory holds only the measured clients.
    with (
        tempfile.TemporaryDirectory(prefix="foldlog-bench-") as folder,
        serving(COMMAND, folder, env={**UNLIMITED, "FOLDLOG_WEB_WORKERS": "1"}) as url,
    ):
        port = port_of(url)
        fetch(port, [request("POST", PUSH.format(space=SPACE), Workload(SPACE).push())])
        [worker] = web_workers(Path(folder))
        task = Task(port, bench.scale.held, path.format(space=SPACE), is_silent=is_silent)
        return _held(worker, task)


def held_by_echo(bench: Bench) -> Figure:
    with echoing(workers=1) as echo:
        [worker] = echo.workers
        return _held(worker, Task(echo.port, bench.scale.held, STREAM))


def _held(worker: psutil.Process, task: Task) -> Figure:
    with _streams(msgspec.structs.replace(task, streams=WARM_STREAMS)):
        pass  # the first clients also pay one-time costs
    before = _settled(worker)
    with _streams(task):
        after = _settled(worker)
    return Figure((after - before) / task.streams * 1_000, note=f"{task.streams:,} open")


def _settled(worker: psutil.Process) -> float:
    """Waits until the resident memory is steady, and returns it in MB."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    memory = resident_mb(worker)
    while time.monotonic() < deadline:
        time.sleep(SETTLED_SECONDS)
        before, memory = memory, resident_mb(worker)
        if abs(memory - before) <= SETTLED_MB:
            break
    return memory


def following(bench: Bench, spaces: int) -> Figure:
    """The delay from the acknowledgement of a push to its arrival at each stream of the space."""
    names = tuple(bench.new_space() for _ in range(spaces))
    fetch(
        bench.port,
        (request("POST", PUSH.format(space=s), Workload(f"first {s}").push()) for s in names),
    )
    return _followed(bench, Task(bench.port, 0, FOLLOW, names, push_path=PUSH, after=1))


def following_echo(bench: Bench) -> Figure:
    """The same streams on a bare ASGI callable that forwards each message."""
    with echoing(workers=1) as echo:
        return _followed(bench, Task(echo.port, 0, STREAM, push_path=ANNOUNCE))


def _followed(bench: Bench, task: Task) -> Figure:
    task.streams, task.seconds = bench.scale.following, bench.scale.seconds * 2
    with _streams(task) as said:
        arrivals = msgspec.json.decode(said, type=Arrivals)
    return Figure(
        arrivals.p99_ms,
        p50_ms=arrivals.p50_ms,
        p99_ms=arrivals.p99_ms,
        generator_cpu=arrivals.generator_cpu,
        note=f"{task.streams:,} streams, {arrivals.pushes} pushes",
    )


@contextmanager
def _streams(task: Task) -> Iterator[str]:
    """Runs the clients as a separate process, and returns its results."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.streams", msgspec.json.encode(task).decode()],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        said = process.stdout.readline()
        if not said:
            raise BenchmarkFailed(process.stderr.read())
        yield said
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _held_row(title: str, measure: Callable[[Bench], Figure]) -> Row:
    return Row(
        "live",
        title,
        "kB each",
        measure,
        {"bare ASGI stream, held": held_by_echo},
        less_is_better=True,
    )


def _following_row(title: str, spaces: int) -> Row:
    return Row(
        "live",
        title,
        "ms (p99)",
        partial(following, spaces=spaces),
        {"bare ASGI stream, announced": following_echo},
        less_is_better=True,
    )


ROWS = (
    _held_row(
        "memory of an open stream, on one worker", partial(held, path=FOLLOW, is_silent=False)
    ),
    _held_row(
        "memory of a request that waits, on one worker",
        partial(held, path=WAIT, is_silent=True),
    ),
    _following_row("from acknowledgement to arrival, one space", 1),
    _following_row("from acknowledgement to arrival, 100 spaces", 100),
)
