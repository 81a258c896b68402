"""Defines which stored data must be loaded to decide a group of pushes, in addition to the state of
the space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .changesets import Push
from .collections import Schemas, changeset_needs_records
from .merge import Key, Record
from .step_budget import Steps, TooManySteps


@dataclass(frozen=True, slots=True)
class Lookups:
    """The stored data that `PushDecider` needs to accept or refuse each push of a group. The
    infrastructure layer loads the data before it calls `PushDecider`."""

    #: The stored events of the pushed changeset ids. `None` marks an event that exceeds the bytes
    #: that may be loaded.
    known: Mapping[str, bytes | None] = field(default_factory=dict)
    #: The state of each of `keys_to_load` at the head, including records that do not exist.
    #: Records beyond the bytes that may be loaded are missing. `None`: the master table is behind.
    records: Mapping[Key, Record] | None = field(default_factory=dict)
    #: The log's mark at each `after` of the pushes.
    marks: Mapping[int, str] = field(default_factory=dict)
    #: The seq of the last erasure of each record among `keys_unseen`.
    erasures: Mapping[Key, int] = field(default_factory=dict)


def keys_to_load(pushes: Iterable[Push], schemas: Schemas, steps: Steps | None = None) -> set[Key]:
    """Returns the keys of the records that must be loaded before the pushes are decided. A record
    must be loaded if a decision depends on its state, or if the answer to a push contains it.

    This takes from `steps`, the budget of the group, what the questions about the pushes take. The
    pushes after the one that uses it up are left out, because they belong into the next group."""
    return {
        op.key
        for push in (pushes if steps is None else pushes_within(pushes, steps))
        for index, changeset in enumerate(push.changesets)
        # A guarded changeset needs all of its records, because the answer to a stale one contains
        # them. The conditions are per changeset, because each may scan all of its operations.
        if push.wants_records
        or changeset.is_guarded
        or (schemas and _needs_records(push, index, schemas))
        for op in changeset.ops
    }


def pushes_within(pushes: Iterable[Push], steps: Steps) -> Iterator[Push]:
    """Yields the first push, and then the further ones until the budget `steps` of the group is
    used up. Takes from it what was asked about the pushes meanwhile."""
    for index, push in enumerate(pushes):
        if index and not steps.left:
            return
        asked = push.steps.spent
        yield push
        steps.take(push.steps.spent - asked)


def _needs_records(push: Push, index: int, schemas: Schemas) -> bool:
    try:
        return changeset_needs_records(push, index, schemas)
    except TooManySteps:
        return True  # the push is refused as a whole, if this changeset is a new one


def keys_unseen(pushes: Iterable[Push], seq: int) -> set[Key]:
    """Returns the keys of all records in the changesets whose `base` is lower than `seq`. The
    devices may not have received event `seq` when they made these changesets."""
    return {
        op.key
        for push in pushes
        for changeset in push.changesets
        if changeset.base < seq
        for op in changeset.ops
    }
