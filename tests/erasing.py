"""Random pushes and erasures from a seed, and the rules that the log keeps after them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from foldlog.domain import proofs
from foldlog.domain.events import decode_event, restored_entry
from foldlog.domain.merge import Conflict, Key, Record, conflict_document, fold, view_of
from tests.helpers import A, B, C, all_conflicts, all_records, changeset, push_of
from tests.oracle import Oracle, canonical

KEYS = [("tasks", "r"), ("tasks", "s"), ("stats", "r")]
NAMES = ["a", "b"]


class Life:
    """A sequence of pushes and erasures. `between` runs among them, for example a projector."""

    def __init__(self, store: Any, space: str, seed: int, between: Callable[[], None] = lambda: 0):
        self.store, self.space, self.between = store, space, between
        self.rng = random.Random(seed)
        self.head = 0
        #: each pushed value with its record, its seq and its base
        self.planted: list[tuple[str, Key, int, int]] = []
        self.erasures: dict[Key, int] = {}
        #: old checkpoints: (size, the hashes of all leaves up to it)
        self.checkpoints: list[tuple[int, list[bytes]]] = []

    def live(self, steps: int) -> Life:
        self.push()
        for _ in range(steps):
            self.rng.choices([self.push, self.erase, self.check_point, self.between], [6, 2, 1, 2])[
                0
            ]()
        self.check_point()
        return self

    def push(self) -> None:
        base = max(0, self.head - self.rng.choice([0, 0, 0, 1, 3, 9]))
        values = []
        ops = []
        for key in self.rng.choices(KEYS, k=self.rng.choice([1, 1, 2, 3])):
            named = {"collection": key[0], "id": key[1]}
            kind = self.rng.choice(["put", "put", "put", "expect", "local", "delete"])
            if kind == "delete":
                ops.append({"op": "delete", **named})
                continue
            value = f"planted-{self.rng.getrandbits(64):016x}"
            values.append((value, key))
            fields = {self.rng.choice(NAMES): value}
            if kind == "expect":
                ops.append({"op": "put", **named, "fields": {}, "expect": fields})
            else:
                ops.append({"op": "put", **named, "fields": fields})
        if not values and not ops:
            return
        sent = changeset(*ops, base=base, made_at=f"2026-11-23T08:59:5{self.rng.randint(0, 9)}Z")
        device = self.rng.choice([A, B, C])
        [verdict] = self.store.push(self.space, push_of(sent, device=device)).verdicts
        self.head = verdict.seq
        self.planted += [(value, key, verdict.seq, base) for value, key in values]

    def erase(self) -> None:
        named = {key for _, key, _, _ in self.planted}
        if named:
            key = self.rng.choice(sorted(named))
            [erased] = self.store.erase(self.space, [key], reason="asked to")
            self.erasures[key] = erased.seq
            self.head = max(self.head, erased.seq)

    def check_point(self) -> None:
        self.checkpoints.append((self.head, self.leaves()))

    def leaves(self) -> list[bytes]:
        return [
            proofs.leaf_hash(proofs.leaf_of(proofs.header_of(entry.state), entry.ops_hash))
            for entry in self.store.entries(self.space, through=self.head)
        ]

    def is_erased(self, key: Key, seq: int, base: int) -> bool:
        erased = self.erasures.get(key, 0)
        return seq < erased or base < erased

    @property
    def erased_values(self) -> list[str]:
        return [v for v, key, seq, base in self.planted if self.is_erased(key, seq, base)]

    @property
    def kept_values(self) -> list[str]:
        return [v for v, key, seq, base in self.planted if not self.is_erased(key, seq, base)]


def check_log(life: Life) -> None:
    """Checks old checkpoints and commitments, and that exactly the erased values are gone."""
    now = life.leaves()
    for size, leaves in life.checkpoints:
        assert now[:size] == leaves
    entries = list(life.store.entries(life.space, through=life.head))
    for entry in entries:
        assert restored_entry(entry.state, entry.salt) == entry
    said = b"".join(entry.state for entry in entries).decode()
    assert not [value for value in life.erased_values if value in said]
    assert not [value for value in life.kept_values if value not in said]


def check_records(life: Life) -> None:
    """Checks that master table, fold and oracle make the same of the remaining log."""
    records: dict[Key, Record] = {}
    conflicts: list[Conflict] = []
    states = [entry.state for entry in life.store.entries(life.space, through=life.head)]
    for state in states:
        conflicts += fold(records, decode_event(state))
    oracle = Oracle().fold(*map(msgspec.json.decode, states))
    views = sorted(map(canonical, oracle.views().values()))
    table = all_records(life.store, life.space, at_least=life.head, changed_after=0)
    assert sorted(map(canonical, table)) == views
    folded = [msgspec.to_builtins(view_of(r)) for r in records.values() if r.exists]
    assert sorted(map(canonical, folded)) == views
    lost = sorted(map(canonical, oracle.ledger))
    assert sorted(map(canonical, map(conflict_document, conflicts))) == lost
    ledger = all_conflicts(life.store, life.space, at_least=life.head)
    assert sorted(map(canonical, ledger)) == lost
