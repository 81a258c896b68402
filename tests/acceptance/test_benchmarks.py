"""The benchmark suite runs; how fast anything is, no test says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foldlog.scripts.process import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_row_can_be_measured():
    """
    In a second each: the service starts, every row and its bare limits are measured, and after
    each push what is stored is what was acknowledged, or the suite fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    for row in (
        "push, 1 a request",
        "push, 100 a request",
        "pull in pages",
        "rebuild",
        "idle poll",
    ):
        assert row in done.stdout
