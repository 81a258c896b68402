"""The conflict ledger as clients read it: both values, their authors, and how to restore the loser.

    {"seq": 42, "op": "put", "collection": "tasks", "id": "8f0c", "field": "title",
     "rule": "concurrent",
     "lost": {"value": "Oat milk", "seq": 40, "device": "9a1c...", "changeset": "...", ...},
     "won": {"value": "Soy milk", "seq": 42, "device": "5d0e...", "changeset": "...", ...},
     "restore": {"base": 57, "ops": [{"op": "put", ..., "fields": {"title": "Oat milk"}}]}}

`restore` is a changeset to which the client adds `id`, `counter` and `made_at`. Its `base` is the
seq at which the answer is true. So the changeset has seen the value that won, and wins against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .history import EventHead


class ConflictsFilter(msgspec.Struct, frozen=True):
    """Selects conflicts. All given conditions must hold."""

    collection: str | None = None
    id: str | None = None
    field: str | None = None
    device: str | None = None  #: the author of either side
    since: int = 0  #: decided after this seq


ALL_CONFLICTS = ConflictsFilter()


class LedgerSide(msgspec.Struct, kw_only=True):
    """One side of a ledger entry: the value, and facts of the event that wrote it."""

    value: msgspec.Raw | UnsetType = UNSET
    seq: int
    device: str | None
    changeset: str | UnsetType = UNSET
    made_at: str | UnsetType = UNSET
    received_at: str | UnsetType = UNSET


class Restore(msgspec.Struct):
    """A changeset that the client must complete."""

    base: int
    ops: list[dict[str, Any]]


class LedgerEntry(msgspec.Struct):
    seq: int
    op: str
    collection: str
    id: str
    field: str
    rule: str
    lost: LedgerSide
    won: LedgerSide
    restore: Restore | None = None

    @property
    def seqs(self) -> tuple[int, int]:
        return self.lost.seq, self.won.seq


_decode = msgspec.json.Decoder(LedgerEntry).decode


def read_ledger(documents: Iterable[bytes]) -> list[LedgerEntry]:
    return [_decode(document) for document in documents]


def render_ledger(
    entries: Iterable[LedgerEntry], heads: Mapping[int, EventHead], base: int
) -> list[bytes]:
    """Renders the entries for clients, as JSON. `heads` has the events of their `seqs`."""
    rendered = []
    for entry in entries:
        for side in (entry.lost, entry.won):
            if (head := heads.get(side.seq)) is not None:
                side.changeset, side.made_at = head.id, head.made_at
                side.received_at = head.received_at
        entry.restore = _restore(entry, base)
        rendered.append(msgspec.json.encode(entry))
    return rendered


def _restore(entry: LedgerEntry, base: int) -> Restore | None:
    """The changeset that restores the lost value.

    `None` for a number that could not be added, because it never was a value of the field.
    """
    if entry.rule == "not-addable":
        return None
    op: dict[str, Any] = {"op": "put", "collection": entry.collection, "id": entry.id}
    if entry.lost.value is UNSET:
        # The lost edit had removed the field. A deleted record lacks the field anyway, and must
        # stay deleted: the guard `expect` then refuses the changeset.
        op |= {"unset": [entry.field], "expect": {}}
    else:
        # The lost value of an `add` is the number to add, so it is added to the current value.
        op |= {"op": entry.op if entry.op == "add" else "put"}
        op |= {"fields": {entry.field: entry.lost.value}}
    return Restore(base, [op])
