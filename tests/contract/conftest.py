"""Fixtures of the contracts: a fresh space for each test, also in a database that is kept."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture
def space() -> str:
    return f"test-{uuid.uuid4()}"
