"""Converts the conflict ledger to the JSON that clients read. Each entry has the losing and the
winning value, their authors, and a changeset that restores the losing value.

    {"seq": 42, "op": "put", "collection": "tasks", "id": "8f0c", "field": "title",
     "rule": "concurrent",
     "lost": {"value": "Oat milk", "seq": 40, "device": "9a1c...", "changeset": "...", ...},
     "won": {"value": "Soy milk", "seq": 42, "device": "5d0e...", "changeset": "...", ...},
     "restore": {"base": 57, "ops": [{"op": "put", ..., "fields": {"title": "Oat milk"}}]}}

To use `restore`, the client adds `id`, `counter` and `made_at` and pushes the changeset. The `base`
of the changeset is the seq that the master table had reached when the server answered. The
changeset is therefore merged as a later change than the conflict, and the restored value wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .history import EventHead
from .json_reader import decoder


class ConflictsFilter(msgspec.Struct, frozen=True):
    """Selects conflicts for a list. A conflict must fulfil all conditions that are given."""

    collection: str | None = None
    id: str | None = None
    field: str | None = None
    device: str | None = None  #: the author of either side
    since: int = 0  #: decided after this seq


ALL_CONFLICTS = ConflictsFilter()


class LedgerSide(msgspec.Struct, kw_only=True):
    """One side of a conflict: the losing or the winning value, and facts about the event that wrote
    it."""

    value: msgspec.Raw | UnsetType = UNSET
    seq: int
    device: str | None
    changeset: str | UnsetType = UNSET
    made_at: str | UnsetType = UNSET
    received_at: str | UnsetType = UNSET


class Restore(msgspec.Struct):
    """A changeset that restores a losing value. The client must add `id`, `counter` and `made_at`
    before it pushes the changeset."""

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


_decode = decoder(LedgerEntry).decode


def read_ledger(documents: Iterable[bytes]) -> list[LedgerEntry]:
    return [_decode(document) for document in documents]


def render_ledger(
    entries: Iterable[LedgerEntry], heads: Mapping[int, EventHead], base: int
) -> list[bytes]:
    """Returns a list of JSON bytes for clients, one item for each entry of the ledger. Each item
    contains the conflict and the changeset that restores the losing value.

    `heads` is a dict from the seq of an event to its header, which contains the changeset's id and
    times. `base` is the seq that the master table had reached when the entries were read.
    """
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
    """Returns the changeset that restores the losing value of a conflict.

    Returns `None` for a conflict with the rule `not-addable`, because its losing number was never a
    value of the field.
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
