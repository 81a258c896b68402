"""What all tests share: an event store of each kind."""

from __future__ import annotations

import pytest

from foldlog.infrastructure.memory.store import MemoryStore


@pytest.fixture(params=["memory"])
def store(request):
    """Every test that asks for a store runs once on each kind of store."""
    return MemoryStore()
