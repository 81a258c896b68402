"""Implements all ports (interfaces) of the domain in memory, for tests, docs and simulations.

It decides pushes and merges records with the same code as the PostgreSQL store (`PushDecider` and
`fold`). The tests in tests/contract run against both stores.
"""

from __future__ import annotations

from .event_store import MemoryEventStore
from .master_table import MemoryMasterTable
from .proof_tree import MemoryProofTree
from .registry import MemoryRegistry


class MemoryStore(MemoryEventStore, MemoryMasterTable, MemoryRegistry, MemoryProofTree):
    """One object that implements all ports (interfaces) of the domain in memory.

    Each append updates all data at once, so the master table and the tree always contain the newest
    event.
    """
