"""The benchmark suite runs. Tests never assert speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foldlog.scripts.server.process import environment

ROOT = Path(__file__).parents[2]


def run_quickly() -> str:
    """Measures each usual row for a second. Returns the table of figures.

    The benchmark fails if the stored events differ from the acknowledged ones.
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
    return done.stdout


@pytest.mark.seconds(90)
@pytest.mark.slow
def test_every_row_can_be_measured():
    """All rows that run by default are measured. Those of other systems run only by name."""
    table = run_quickly()
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
        assert row in table
