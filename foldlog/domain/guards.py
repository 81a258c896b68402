"""Checks guards: the conditions under which a changeset may be stored.

A guard is the member `guard` of a changeset, or the member `if_seq` or `expect` of an operation. If
the condition of a guard is false, the changeset is refused with the code `stale`.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from .changesets import Changeset, Operation
from .events import Refusal
from .merge import Key, Record
from .values import ABSENT, same


def stale(changeset: Changeset, device: str, records: Mapping[Key, Record]) -> Refusal | UnsetType:
    """Checks the guards of a changeset. Returns a `Refusal` with the code `stale` if the condition
    of a guard is false. Returns `UNSET` if all conditions are true.

    `records` must contain each record that a guard checks, in its state before the changeset.
    """
    for op in changeset.ops:
        if changeset.guard is not UNSET or op.is_guarded:
            why = _broken_guard(changeset, op, device, records[op.key])
            if why is not None:
                return Refusal("stale", f"{op.collection}/{op.id}: {why}")
    return UNSET


def _broken_guard(changeset: Changeset, op: Operation, device: str, record: Record) -> str | None:
    if changeset.guard == "unchanged":
        touched = record.touched_by_other(device)
        if touched > changeset.base:
            return f"another device changed it at seq {touched}, after base {changeset.base}"
    if op.if_seq is not UNSET:
        seq = record.seq if record.exists else 0
        if seq != op.if_seq:
            return f"{_state_of(record)}: its seq is {seq}, not {op.if_seq}"
    if op.expect is None and record.is_live:
        return f"it exists, since seq {record.created_seq}"
    if isinstance(op.expect, dict):
        if not record.is_live:
            return _state_of(record)
        for name, value in op.expect.items():
            if not same(record.fields.get(name, ABSENT), value):
                # The refusal omits the field's name: an erasure keeps refusals in the log.
                return "a field has another value"
    return None


def _state_of(record: Record) -> str:
    if not record.exists:
        return "it never existed"
    return "it exists" if record.is_live else f"it was deleted at seq {record.seq}"
