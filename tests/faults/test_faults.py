"""Real faults under load. The checker compares the responses with the log."""

from __future__ import annotations

import os
import random
import re
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import pytest

from .faults import AT_STATEMENTS, FULL_DISK, OTHERS, small_disk
from .run import Run

SEED = int(os.environ.get("FOLDLOG_FAULTS_SEED", "20261124"))
#: of the long run and of the soak, by default
FAULTS = int(os.environ.get("FOLDLOG_FAULTS", "300"))
SOAK_SECONDS = float(os.environ.get("FOLDLOG_SOAK_SECONDS", "3600"))
LOAD_SHARE = 0.7
#: by how much a median may be greater in the last quarter than in the second
SLACK = {"memory_mb": 1.2, "connections": 1.2, "lag_events": 2.0, "cpu_percent": 1.2}
#: a projection that keeps up has less lag than this between two batches
LAG_EVENTS_MAX = 2_000
#: the file system of the long run: its load alone does not fill it
LARGE_ENOUGH_BYTES = 3 * 2**30
#: a file for the table of faults and outcomes
TABLE = os.environ.get("FOLDLOG_FAULTS_TABLE")


@pytest.mark.seconds(60)
@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_acknowledged_changesets_survive_some_faults(data_folder, count):
    """
    The faults are a sample: connections cut, delayed and silenced at each statement of an append,
    processes killed and stopped, PostgreSQL restarted, read-only, without connections or memory.
    Each acknowledged changeset is in the log once, seqs are complete and in order, reads never go
    back, and each answer is in time. At the end log, tiles and master table are verified.
    """
    rng = random.Random(SEED)
    with Run(data_folder, SEED) as run:
        quick = [fault for fault in OTHERS if "7 s" not in fault.name]
        for fault in [*rng.sample(AT_STATEMENTS, count), *rng.sample(quick, count)]:
            run.do(fault)
        found = run.check()
        print(run.table())
        assert "\n".join(found) == ""
        assert sum(outcome.times for outcome in run.outcomes.values()) >= 1.5 * count


@pytest.mark.seconds(40)
@pytest.mark.slow
def test_acknowledged_changesets_survive_a_full_disk(data_folder):
    with small_disk(data_folder) as can_be_filled:
        if not can_be_filled:
            pytest.skip("mounting a small file system is not allowed here")
        with Run(data_folder, SEED) as run:
            run.do(FULL_DISK)
            found = run.check()
            print(run.table())
            assert "\n".join(found) == ""
            answers = run.outcomes[FULL_DISK.name].answers
            assert answers["storage-unavailable"] + answers["outcome-unknown"], "it was not full"


@pytest.mark.soak
def test_acknowledged_changesets_survive_hundreds_of_faults(data_folder):
    rng = random.Random(SEED)
    disk = small_disk(data_folder, LARGE_ENOUGH_BYTES)
    with disk as can_be_filled, Run(data_folder, SEED) as run:
        every = [*AT_STATEMENTS, *OTHERS, *([FULL_DISK] if can_be_filled else [])]
        # Each kind of fault occurs, in random order.
        planned = [*every * (FAULTS // len(every)), *rng.sample(every, FAULTS % len(every))]
        rng.shuffle(planned)
        for fault in planned:
            run.do(fault)
        found = run.check()
        print(run.table())
        if TABLE:
            Path(TABLE).write_text(run.table() + "\n")
        assert "\n".join(found) == ""


@pytest.mark.soak
def test_memory_connections_and_lag_stay_flat(data_folder):
    """
    FOLDLOG_SOAK_SECONDS (an hour by default) of 70 % of the highest load, with random faults. The
    samples are taken between the faults.
    """
    rng = random.Random(SEED)
    with Run(data_folder, SEED) as run:
        full = run.load.pace(LOAD_SHARE, min(30.0, SOAK_SECONDS / 10))
        samples: list[Sample] = []
        psutil.cpu_percent()
        began = time.monotonic()
        while time.monotonic() - began < SOAK_SECONDS:
            time.sleep(min(10.0, SOAK_SECONDS / 20))
            samples.append(Sample.of(run))
            if rng.random() < 0.5:
                run.do(rng.choice([*AT_STATEMENTS, *OTHERS]))
        pushed = sum(push.status == 200 for push in run.history.pushes if push.began >= began)
        faults = sum(outcome.times for outcome in run.outcomes.values())
        print(f"{faults} faults, {pushed / SOAK_SECONDS:.0f} pushes/s of {full:.0f} at most")
        # The service answers no push during a fault.
        assert pushed / SOAK_SECONDS > 0.7 * LOAD_SHARE * full, "the load was too small"
        assert "\n".join(run.check()) == ""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    for name, slack in SLACK.items():
        values = []
        for part in (early, late):
            found = [getattr(sample, name) for sample in part]
            values.append((median(found), max(found)))
        (before, before_max), (after, after_max) = values
        print(f"{name}: {before:.0f}, then {after:.0f} (max {before_max:.0f}, {after_max:.0f})")
        least = LAG_EVENTS_MAX if name == "lag_events" else 0
        assert after <= max(before * slack, least), f"{name} grew"


class Sample(NamedTuple):
    memory_mb: float  #: of the service's processes
    connections: int  #: of the service to the database
    lag_events: float  #: of the space whose master table, or tree, is furthest behind
    cpu_percent: float  #: of the machine, with the load itself

    @classmethod
    def of(cls, run: Run) -> Sample:
        memory = 0
        for process in psutil.Process(run.world.service.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                memory += process.memory_info().rss
        lags = re.findall(
            r"^foldlog_lag_events_max\S* (\S+)$", run.world.service.metrics(), re.MULTILINE
        )
        return cls(
            memory_mb=memory / 2**20,
            connections=len(run.world.processes["backend"]),
            lag_events=max(map(float, lags)),
            cpu_percent=psutil.cpu_percent(),
        )
