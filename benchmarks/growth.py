"""The cost of a long log: pushes and pulls on spaces with ten thousand and ten million events.

The memory of the web workers is measured after each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from . import cells
from .bench import Bench, decode
from .cells import Measure, Row
from .connection import fetch, request
from .errors import BenchmarkFailed
from .figures import Figure
from .filling import announce, fill

PULLED_PAGES = 200
SETTLE_SECONDS_MAX = 4 * 3_600.0


def young(bench: Bench) -> str:
    """Makes a new short space each time, because the pushes lengthen its log."""
    return _space(bench, bench.new_space(), bench.scale.small)


def old(bench: Bench) -> str:
    return bench.once(_old)


def _old(bench: Bench) -> str:
    space = _space(bench, bench.new_space(), bench.scale.grown)
    bench.database.execute("VACUUM ANALYZE")
    return space


def _space(bench: Bench, space: str, events: int) -> str:
    fill(bench.url, space, events)
    announce(bench.database, space, events)
    bench.settle(space, SETTLE_SECONDS_MAX)
    return space


def push(bench: Bench, log: Callable[[Bench], str], changesets: int, connections: int) -> Figure:
    """Pushes as to an empty space."""
    space = log(bench)
    head = bench.head(space)
    return _grown(bench, cells.push(bench, changesets, connections, space), head)


def pull(bench: Bench, log: Callable[[Bench], str]) -> Figure:
    """Pulls pages spread evenly over the whole log. A short log is pulled repeatedly."""
    space = log(bench)
    head, page = bench.head(space), bench.scale.page
    step = max(page, head // PULLED_PAGES // page * page)
    path = f"/v1/spaces/{space}/events?limit={page}&after="
    cursors = list(islice(cycle(range(0, head - page + 1, step)), PULLED_PAGES))
    started, disk = time.perf_counter(), disk_kb()
    answers = fetch(bench.port, (request("GET", f"{path}{after}") for after in cursors))
    seconds, disk = time.perf_counter() - started, disk_kb() - disk
    for after, answer in zip(cursors, answers, strict=True):
        seqs = [event["seq"] for event in decode(answer.body)["events"]]
        if seqs != list(range(after + 1, after + page + 1)):
            raise BenchmarkFailed(f"the page after {after} is another one")
    figure = _grown(bench, Figure(len(cursors) * page / seconds), head)
    figure.note += f", {disk / len(cursors):,.0f} kB a page read from the disk"
    return figure


def disk_kb() -> int:
    """All reads of this machine from its disks, in kB. 0 if unknown."""
    vmstat = Path("/proc/vmstat")
    lines = vmstat.read_text().splitlines() if vmstat.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("pgpgin ")), 0)


def _grown(bench: Bench, figure: Figure, events: int) -> Figure:
    figure.workers_mb = bench.workers_mb
    figure.note = f"{events:,} events"
    return figure


def _row(title: str, unit: str, measure: Callable[[Callable[[Bench], str]], Measure]) -> Row:
    return Row(
        "growth",
        title,
        unit,
        measure(old),
        {"a young log": measure(young)},
        is_bare=False,
        is_long=True,
    )


def _push(changesets: int, connections: int) -> Callable[[Callable[[Bench], str]], Measure]:
    return lambda log: partial(push, log=log, changesets=changesets, connections=connections)


ROWS = (
    _row("an old log: push, 1 a request, 32 connections", "changesets/s", _push(1, 32)),
    _row("an old log: push, 100 a request, 8 connections", "changesets/s", _push(100, 8)),
    _row("an old log: pull in pages of 1,000", "events/s", lambda log: partial(pull, log=log)),
)
