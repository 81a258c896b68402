"""Implements all ports in memory, for tests, documentation and simulations.

It decides pushes and merges records with the same code as the PostgreSQL store (`PushDecider` and
`fold`). The contract tests (tests/contract) run against both stores.
"""

from __future__ import annotations

from .event_store import MemoryEventStore
from .master_table import MemoryMasterTable
from .proof_tree import MemoryProofTree
from .registry import MemoryRegistry


class MemoryStore(MemoryEventStore, MemoryMasterTable, MemoryRegistry, MemoryProofTree):
    """Implements all ports in one object.

    All data is updated with each append, so the master table and the tree are always up to date.
    """
