"""The same load by wrk, a generator in C. It shows whether our generator slows the service down.

wrk drops its last requests, so the log may have one push more for each connection than the number
of answers. The benchmark checks this bound. Our own generator checks for equal numbers.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import msgspec

from . import cells
from .bench import Bench
from .cells import Row
from .errors import BenchmarkFailed, Skipped
from .figures import Figure

SCRIPT = Path(__file__).with_name("wrk.lua")
RESULT = "RESULT "


class _Said(msgspec.Struct):
    answers: int
    microseconds: int
    p50_us: int
    p99_us: int
    errors: int


def push(bench: Bench, connections: int) -> Figure:
    space = bench.new_space()
    with tempfile.NamedTemporaryFile(dir=bench.data, suffix=".lines") as file:
        file.write(b"\n".join(cells.bodies(bench, 1, seed=f"wrk {space}")))
        file.flush()
        bench.checkpoint()
        path = f"/v1/spaces/{space}/changesets"
        said, figure = _wrk(bench, bench.port, path, connections, bodies=file.name)
    figure.catch_up_seconds = bench.settle(space)
    stored = bench.stored(space)
    if not 0 <= stored - said.answers <= connections:
        raise BenchmarkFailed(f"wrk was told of {said.answers}, {stored} are stored")
    return figure


def poll(bench: Bench, connections: int) -> Figure:
    _, figure = _wrk(bench, bench.port, cells.idle_path(bench), connections)
    return figure


def _wrk(
    bench: Bench, port: int, path: str, connections: int, bodies: str | None = None
) -> tuple[_Said, Figure]:
    command = shutil.which("wrk")
    if command is None:
        raise Skipped("wrk is not installed")
    seconds = max(1, round(bench.scale.seconds))
    load = [command, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"]
    before, started = _cpu_of_children(), time.perf_counter()
    done = subprocess.run(
        [*load, "-s", str(SCRIPT), f"http://127.0.0.1:{port}"],
        env={**os.environ, "REQUEST_PATH": path, **({"BODIES": bodies} if bodies else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    cpu = (_cpu_of_children() - before) / (time.perf_counter() - started)
    _, found, said = done.stdout.partition(RESULT)
    if not found:
        raise BenchmarkFailed(done.stdout + done.stderr)
    told = msgspec.json.decode(said.strip(), type=_Said)
    if told.errors:
        raise BenchmarkFailed(done.stdout)
    return told, Figure(
        told.answers / told.microseconds * 1e6,
        p50_ms=told.p50_us / 1_000,
        p99_ms=told.p99_us / 1_000,
        generator_cpu=cpu,
    )


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


ROWS = (
    Row(
        "push1",
        "push, 1 a request, 32 connections, by wrk",
        "changesets/s",
        partial(push, connections=32),
        {"bare ASGI echo, 32 connections": cells.BARE_ECHO_OF_PUSH[32]},
    ),
    Row(
        "poll",
        "idle poll, 32 connections, by wrk",
        "requests/s",
        partial(poll, connections=32),
        {"bare ASGI echo of the answer": cells.BARE_ECHO_OF_POLL},
    ),
)
