"""The benchmark suite runs; how fast anything is, no test says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foldlog.scripts.server.process import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_row_can_be_measured():
    """
    In a second each: the service starts, every row and what stands beside it are measured, and
    after each push what is stored is what was acknowledged, or the suite fails. Other systems and
    ten million events are not needed for that: their rows run only when they are named.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    for row in (
        "push, 1 a request",
        "push, 100 a request",
        "pull in pages",
        "rebuild",
        "idle poll",
        "the projector, following",
        "memory of an open stream",
        "memory of a request that waits",
        "from acknowledgement to arrival",
    ):
        assert row in done.stdout
