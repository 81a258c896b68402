"""The seeded simulation: all devices are equal in the end, after any failures.

Run a failing seed again with `FOLDLOG_SEED=123 pytest tests/simulation -k one_seed`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest

from foldlog.client.sync import applier
from tests.conftest import fast_folder
from tests.examples import PROFILE

from .world import World

#: each tenth seed begins a test, which takes so many
SEEDS_A_TEST = {"quick": 3, "ci": 10}[PROFILE]


def run(seed: int, *, over_http: bool = False) -> None:
    at_once = (1, 3, applier.RECORDS_AT_ONCE)[seed % 3]
    with (
        tempfile.TemporaryDirectory(prefix="foldlog-", dir=fast_folder()) as folder,
        patch.object(applier, "RECORDS_AT_ONCE", at_once),
    ):
        try:
            World(seed, Path(folder), over_http=over_http).run()
        except BaseException as exc:
            http = " FOLDLOG_HTTP=1" if over_http else ""
            exc.add_note(f"again: FOLDLOG_SEED={seed}{http} pytest tests/simulation -k one_seed")
            raise


@pytest.mark.parametrize("first", range(0, 300, 10))
def test_all_are_equal_in_the_end(first):
    for seed in range(first, first + SEEDS_A_TEST):
        run(seed)


def test_also_over_http():
    for seed in range(1_000_000, 1_000_005):
        run(seed, over_http=True)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 15_000, 50))
def test_thousands_of_seeds(first):
    for seed in range(first, first + 50):
        run(seed)


@pytest.mark.skipif("FOLDLOG_SEED" not in os.environ, reason="FOLDLOG_SEED says which")
def test_one_seed():
    run(int(os.environ["FOLDLOG_SEED"]), over_http="FOLDLOG_HTTP" in os.environ)
