"""Folding, compared with the projection runner of the eventsourcing library.

Both fold writes of the same records into one table of PostgreSQL, each event exactly once. The
library's runner writes a row and its position for each event.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec

from foldlog.scripts.server.process import environment

from .bench import Bench
from .cells import Row, rebuild
from .errors import BenchmarkFailed
from .figures import Figure
from .filling import announce, fill

DATABASE = "eventsourcing"
DRIVER = "benchmarks.eventsourced"


def following(bench: Bench) -> Figure:
    """The projector of the running service, from the notification about a batch."""
    space, events = bench.new_space(), bench.scale.followed
    fill(bench.url, space, events, batch=events)
    started = time.perf_counter()
    announce(bench.database, space, events)
    bench.settle(space)
    return Figure(events / (time.perf_counter() - started), note=f"{events:,} events")


def runner(bench: Bench) -> Figure:
    """Events a second of eventsourcing's `ProjectionRunner`, after its start."""
    url = bench.once(_eventsourced)
    return msgspec.json.decode(_driver("run", url, bench.scale.seconds), type=Figure)


def _eventsourced(bench: Bench) -> str:
    """The events for the library: as many as it can fold in the time."""
    url = bench.new_database(DATABASE)
    _driver("fill", url, bench.scale.items)
    return url


def _driver(*words: str | float) -> str:
    done = subprocess.run(
        [sys.executable, "-m", DRIVER, *map(str, words)],
        cwd=Path(__file__).parents[1],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkFailed(done.stdout + done.stderr)
    return done.stdout


THEIRS = {"eventsourcing's ProjectionRunner": runner}
ROWS = (
    Row("projection", "rebuild", "events/s", partial(rebuild), THEIRS, is_bare=False),
    Row("projection", "the projector, following", "events/s", following, THEIRS, is_bare=False),
)
