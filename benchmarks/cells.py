"""The rows of the table: measurements of the service, each with its bare limits."""

from __future__ import annotations

import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import brotli

from foldlog.scripts.server.process import environment

from . import bare
from .bench import COMMAND, Bench, decode
from .connection import Answer, fetch, request
from .echo import BARE, FLASK
from .errors import BenchmarkFailed
from .figures import Figure
from .load import RAMP_SECONDS, drive
from .workload import Workload

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Measure = Callable[[Bench], Figure]

#: enough new requests for the fastest machine
REQUESTS_PER_SECOND_MAX = 20_000
CHANGESETS_PER_SECOND_MAX = 100_000
STORED = b'"verdict":"stored"'

DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": partial(zlib.decompress, wbits=16 + zlib.MAX_WBITS),
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}


@dataclass(frozen=True)
class Row:
    """A row. Its `name` on the command line selects the row and similar ones."""

    name: str
    title: str
    unit: str
    measure: Measure
    #: by title; a measure that several rows share runs once a round
    limits: Mapping[str, Measure] = field(default_factory=dict)
    less_is_better: bool = False
    is_bare: bool = True  #: the comparisons are bare limits; otherwise other systems or sizes
    is_long: bool = False  #: measured only by name
    is_counted: bool = False  #: a count instead of a time, so other processes have no influence


def push(bench: Bench, changesets: int, connections: int, space: str = "") -> Figure:
    """Pushes new changesets of many devices to a space, so many in each request."""
    space = space or bench.new_space()
    before = bench.head(space)
    path = f"/v1/spaces/{space}/changesets"
    # Each load has its own devices and ids, because a space may get several loads.
    made = bodies(bench, changesets, seed=f"{space} {before}")
    requests = [request("POST", path, body) for body in made]
    bench.checkpoint()
    load = drive(
        bench.port, requests, connections=connections, seconds=bench.scale.seconds, count=STORED
    )
    catch_up = bench.settle(space)
    stored = bench.stored(space, after=before)
    if stored != load.counted:
        raise BenchmarkFailed(f"{load.counted} were acknowledged, {stored} are stored")
    figure = bare.figure_of(load)
    figure.value *= changesets
    figure.catch_up_seconds = catch_up
    return figure


def bodies(bench: Bench, changesets: int, seed: str) -> list[bytes]:
    workload = Workload(seed)
    return [workload.push(changesets) for _ in range(requests_max(bench, changesets))]


def requests_max(bench: Bench, changesets: int) -> int:
    a_second = min(REQUESTS_PER_SECOND_MAX, CHANGESETS_PER_SECOND_MAX // changesets)
    return round(a_second * (bench.scale.seconds + RAMP_SECONDS))


def echo_of_push(bench: Bench, path: str, connections: int) -> Figure:
    workload = Workload("echo")
    return bare.echo(bench, path, [workload.push() for _ in range(1_000)], connections)


def pull(bench: Bench, encoding: str) -> Figure:
    """A new client pulls the whole log page by page, on one connection."""
    path = f"/v1/spaces/{bench.log}/events?limit={bench.scale.page}&after="
    requests = [
        request("GET", f"{path}{after}", encoding=encoding)
        for after in range(0, bench.scale.events, bench.scale.page)
    ]
    cpu, started = time.process_time(), time.perf_counter()
    answers = fetch(bench.port, requests)
    seconds = time.perf_counter() - started
    cpu = (time.process_time() - cpu) / seconds
    _check_pages(bench, answers, encoding)
    return Figure(
        bench.scale.events / seconds,
        generator_cpu=cpu,
        bytes_each=sum(answer.bytes_received for answer in answers) / bench.scale.events,
    )


def _check_pages(bench: Bench, answers: list[Answer], encoding: str) -> None:
    """Checks, after the measurement, that the log was complete and in the requested encoding."""
    seqs: list[int] = []
    for answer in answers:
        if answer.encoding != encoding:
            raise BenchmarkFailed(f"asked for {encoding}, got {answer.encoding}")
        seqs += [event["seq"] for event in decode(DECODERS[encoding](answer.body))["events"]]
    if seqs != list(range(1, bench.scale.events + 1)):
        raise BenchmarkFailed(f"{len(seqs)} events came, not each of {bench.scale.events} once")


def poll(bench: Bench, connections: int) -> Figure:
    """Clients at the end of the log poll for new events."""
    return bare.figure_of(
        drive(
            bench.port,
            [request("GET", idle_path(bench))],
            connections=connections,
            seconds=bench.scale.seconds,
            again=True,
        )
    )


def idle_path(bench: Bench) -> str:
    path = f"/v1/spaces/{bench.log}/events"
    [answer] = fetch(bench.port, [request("GET", f"{path}?after={bench.scale.events}")])
    return f"{path}?after={bench.scale.events}&mark={decode(answer.body)['mark']}"


def echo_of_poll(bench: Bench, path: str, connections: int) -> Figure:
    [answer] = fetch(bench.port, [request("GET", idle_path(bench))])
    return bare.echo(bench, path, [answer.body], connections)


def rebuild(bench: Bench, *options: str) -> Figure:
    """Times the whole command while the service is idle."""
    log = bench.log
    bench.database.execute("VACUUM ANALYZE records")
    bench.checkpoint()
    command = [*COMMAND, "rebuild", log, *options, "--data", str(bench.data)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise BenchmarkFailed(done.stdout + done.stderr)
    return Figure(bench.scale.events / seconds)


BARE_ECHO_OF_PUSH = {
    connections: partial(echo_of_push, path=BARE, connections=connections)
    for connections in (1, 8, 32)
}
BARE_ECHO_OF_POLL = partial(echo_of_poll, path=BARE, connections=32)
COPY_HUNDRED = partial(bare.copy, rows_per_commit=100)


def _push_one(connections: int) -> Row:
    return Row(
        "push1",
        f"push, 1 a request, {_connections(connections)}",
        "changesets/s",
        partial(push, changesets=1, connections=connections),
        {
            f"Flask echo, {_connections(connections)}": partial(
                echo_of_push, path=FLASK, connections=connections
            ),
            f"bare ASGI echo, {_connections(connections)}": BARE_ECHO_OF_PUSH[connections],
            "INSERT, 1 a commit": bare.insert,
        },
    )


def _push_hundred(connections: int) -> Row:
    return Row(
        "push100",
        f"push, 100 a request, {_connections(connections)}",
        "changesets/s",
        partial(push, changesets=100, connections=connections),
        {"COPY, 100 a commit": COPY_HUNDRED},
    )


def _pull(encoding: str, name: str) -> Row:
    return Row(
        "pull",
        f"pull in pages of 1,000, {name}",
        "events/s",
        partial(pull, encoding=encoding),
        {"SELECT and join": bare.select_pages},
    )


def _rebuild(title: str, *options: str) -> Row:
    return Row(
        "rebuild",
        title,
        "events/s",
        lambda bench: rebuild(bench, *options),
        {"COPY of the records": bare.copy_records},
    )


def _connections(number: int) -> str:
    return f"{number} connection{'s' if number > 1 else ''}"


ROWS = (
    *(_push_one(connections) for connections in (1, 8, 32)),
    *(_push_hundred(connections) for connections in (1, 8)),
    _pull("identity", "plain"),
    _pull("gzip", "gzip"),
    _pull("br", "br"),
    _pull("zstd", "zstd"),
    _rebuild("rebuild"),
    _rebuild("rebuild --verify", "--verify"),
    Row(
        "poll",
        "idle poll, 32 connections",
        "requests/s",
        partial(poll, connections=32),
        {
            "Flask echo of the answer": partial(echo_of_poll, path=FLASK, connections=32),
            "bare ASGI echo of the answer": BARE_ECHO_OF_POLL,
        },
    ),
)
