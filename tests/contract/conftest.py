"""What the contracts share: a space that no other test, and no earlier run, has used."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture
def space() -> str:
    return f"test-{uuid.uuid4()}"
