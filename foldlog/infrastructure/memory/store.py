"""All ports in memory, for tests, docs and simulations.

The decisions come from the same `PushDecider` and `fold` as with PostgreSQL, and both stores pass
the same contract (tests/contract).
"""

from __future__ import annotations

from .event_store import MemoryEventStore
from .master_table import MemoryMasterTable
from .proof_tree import MemoryProofTree
from .registry import MemoryRegistry


class MemoryStore(MemoryEventStore, MemoryMasterTable, MemoryRegistry, MemoryProofTree):
    """All ports in one object, because here every part is up to date at all times."""
