"""Faults for real, under load, and a checker that believes nobody."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import psutil
import pytest

from .faults import AT_STATEMENTS, FULL_DISK, OTHERS, small_disk
from .run import Run

SEED = int(os.environ.get("FOLDLOG_FAULTS_SEED", "20261124"))
#: of the long run, and of the soak
FAULTS = int(os.environ.get("FOLDLOG_FAULTS", "300"))
SOAK_SECONDS = float(os.environ.get("FOLDLOG_SOAK_SECONDS", "3600"))
#: a file for the table of faults and outcomes
TABLE = os.environ.get("FOLDLOG_FAULTS_TABLE")


@pytest.mark.slow
def test_what_was_acknowledged_survives_some_faults(data_folder):
    """
    A few dozen faults: connections cut, delayed and silenced at each statement of an append,
    processes killed and stopped, PostgreSQL restarted, read-only, without connections or memory.
    Nothing acknowledged is lost or doubled, no seq is missing or out of order, no read goes back,
    no answer is a 500 or late, and log, tiles and master table are verified at the end.
    """
    rng = random.Random(SEED)
    with Run(data_folder, SEED) as run:
        quick = [fault for fault in OTHERS if "7 s" not in fault.name]
        for fault in [*rng.sample(AT_STATEMENTS, 12), *rng.sample(quick, 12)]:
            run.do(fault)
        found = run.check()
        print(run.table())
        assert "\n".join(found) == ""
        assert sum(outcome.times for outcome in run.outcomes.values()) >= 18


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_full_disk(data_folder):
    with small_disk(data_folder) as can_be_filled:
        if not can_be_filled:
            pytest.skip("mounting a small file system is not allowed here")
        with Run(data_folder, SEED) as run:
            run.do(FULL_DISK)
            found = run.check()
            print(run.table())
            assert "\n".join(found) == ""
            told = run.outcomes[FULL_DISK.name].answers
            assert told["storage-unavailable"] + told["outcome-unknown"], "it was not full"


@pytest.mark.soak
def test_what_was_acknowledged_survives_hundreds_of_faults(data_folder):
    rng = random.Random(SEED)
    with small_disk(data_folder) as can_be_filled, Run(data_folder, SEED) as run:
        every = [*AT_STATEMENTS, *OTHERS, *([FULL_DISK] if can_be_filled else [])]
        # Each kind comes, and they come in any order.
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
    FOLDLOG_SOAK_SECONDS (an hour, if it is not set) of load, with a fault every now and then.
    """
    rng = random.Random(SEED)
    with Run(data_folder, SEED) as run:
        samples: list[tuple[float, float, int]] = []
        began = time.monotonic()
        while time.monotonic() - began < SOAK_SECONDS:
            time.sleep(min(10.0, SOAK_SECONDS / 20))
            samples.append(_sample(run))
            if rng.random() < 0.5:
                run.do(rng.choice([*AT_STATEMENTS, *OTHERS]))
        assert "\n".join(run.check()) == ""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    for name, n, slack in (("memory, MB", 1, 1.3), ("connections", 2, 1.5)):
        before, after = max(s[n] for s in early), max(s[n] for s in late)
        print(f"{name}: {before:.0f} in the second quarter, {after:.0f} in the last")
        assert after <= before * slack, f"{name} grew"


def _sample(run: Run) -> tuple[float, float, int]:
    memory = 0
    for process in psutil.Process(run.world.service.process.pid).children(recursive=True):
        try:
            memory += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return time.monotonic(), memory / 2**20, len(run.world.processes["backend"])
