"""The conflict ledger as it is read: both values, both hands, and the way back.

    {"seq": 42, "op": "put", "collection": "tasks", "id": "8f0c", "field": "title",
     "rule": "concurrent",
     "lost": {"value": "Oat milk", "seq": 40, "device": "9a1c...", "changeset": "...", ...},
     "won": {"value": "Soy milk", "seq": 42, "device": "5d0e...", "changeset": "...", ...},
     "restore": {"base": 57, "ops": [{"op": "put", ..., "fields": {"title": "Oat milk"}}]}}

`restore` is a changeset without `id`, `counter` and `made_at`, which are the client's. Its `base`
is the seq that the answer is true at, so it has seen whatever the value lost to, and stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .history import EventHead


class ConflictsFilter(msgspec.Struct, frozen=True):
    """Which conflicts: all that is given must be so."""

    collection: str | None = None
    id: str | None = None
    field: str | None = None
    device: str | None = None  #: the one that lost, or the one that won
    since: int = 0  #: decided after this seq


ALL_CONFLICTS = ConflictsFilter()


class LedgerSide(msgspec.Struct, kw_only=True):
    """A hand of the ledger, with what its event says of itself."""

    value: msgspec.Raw | UnsetType = UNSET
    seq: int
    device: str | None
    changeset: str | UnsetType = UNSET
    made_at: str | UnsetType = UNSET
    received_at: str | UnsetType = UNSET


class Restore(msgspec.Struct):
    """A changeset to be completed by the client."""

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
    """The entries as readers get them; `heads` are the events of their `seqs`."""
    told = []
    for entry in entries:
        for side in (entry.lost, entry.won):
            if (head := heads.get(side.seq)) is not None:
                side.changeset, side.made_at = head.id, head.made_at
                side.received_at = head.received_at
        entry.restore = _restore(entry, base)
        told.append(msgspec.json.encode(entry))
    return told


def _restore(entry: LedgerEntry, base: int) -> Restore | None:
    """The way back, or `None`: a number that could not be added has no place to go back to."""
    if entry.rule == "not-addable":
        return None
    op: dict[str, Any] = {"op": "put", "collection": entry.collection, "id": entry.id}
    if entry.lost.value is UNSET:
        # What lost was that the field is not there. A record that is deleted has none anyway, and
        # shall not be made anew for it: `expect` refuses then.
        op |= {"unset": [entry.field], "expect": {}}
    else:
        # What an `add` lost is a number to add; it adds up with what is there by now.
        op |= {"op": entry.op if entry.op == "add" else "put"}
        op |= {"fields": {entry.field: entry.lost.value}}
    return Restore(base, [op])
