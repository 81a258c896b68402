"""Defines the callbacks that an app can add to a replica, and the objects that the callbacks
receive.

A sync calls the callbacks for records that changed, for changesets that the server refused or
rejected, and for values that lost a merge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

import msgspec

from foldlog.domain.merge import Conflict, conflict_document

from .record import Record
from .store.queue import Queued

Callback = TypeVar("Callback", bound=Callable[..., None])

log = logging.getLogger("foldlog")


@dataclass(frozen=True)
class Change:
    """Describes a record that a sync has changed. Callbacks of `on_change` get this object.

    Attributes:
        collection: The name of the record's collection.
        id: The id of the record.
        record: The record after the change. If the change deleted the record, a tombstone, whose
            `is_deleted` is `True`. `None` if the record is missing on this device now.
    """

    collection: str
    id: str
    record: Record | None


@dataclass(frozen=True)
class Refusal:
    """Describes a changeset that the server did not accept, and that therefore changes no record.

    `Replica.repair` replaces the changeset with a new one, and `Replica.drop` deletes it.

    Attributes:
        id: The id of the changeset.
        state: "refused" if a guard or a schema failed, "rejected" if the changeset is malformed or
            over a limit.
        code: The server's reason, as a problem code.
        detail: The server's reason in words.
        operations: The operations as JSON objects, with `op`, `collection`, `id` and `fields`.
    """

    id: str
    state: Literal["refused", "rejected", "waiting", "stored"]
    code: str
    detail: str
    operations: list[dict[str, Any]]


def refusal_of(queued: Queued) -> Refusal:
    why = queued.why or {}
    return Refusal(
        id=queued.id,
        state=queued.state,
        code=why.get("code", ""),
        detail=why.get("detail", ""),
        operations=[msgspec.to_builtins(op) for op in queued.ops],
    )


@dataclass(frozen=True)
class Loss:
    """Describes a conflict: two concurrent changes of the same field, of which the merge kept only
    one value. Two changes of two devices are concurrent if each device made its change before it
    pulled the change of the other device.

    Attributes:
        number: The number of the conflict in the replica's file, for the argument `after` of
            `Replica.conflicts`; `None` in a callback.
        seq: The seq of the event at which the merge found the conflict.
        collection: The name of the record's collection.
        id: The id of the record.
        field: The name of the field.
        rule: The merge rule that decided (docs/explanation/merge.md).
        lost: The value that lost: `value` (absent for a deletion), `seq` and `device`.
        won: The value that won, with the same members.
        is_mine: Whether this device wrote the value that lost.
    """

    number: int | None
    seq: int
    collection: str
    id: str
    field: str
    rule: str
    lost: dict[str, Any]
    won: dict[str, Any]
    is_mine: bool

    @classmethod
    def from_conflict(cls, conflict: Conflict, own: Container[str]) -> Loss:
        """Returns a `Loss` for a conflict that `fold` has returned.

        `own` contains the current device id and all earlier device ids of this replica. `is_mine`
        is `True` if one of these devices wrote the value that lost.
        """
        return cls._from_document(None, conflict_document(conflict), own)

    @classmethod
    def from_json(cls, number: int, document: str, own: Container[str]) -> Loss:
        """Returns a `Loss` for a conflict from the replica's file. `number` is the number of the
        conflict there, and `document` is the conflict as JSON.

        `own` contains the current device id and all earlier device ids of this replica. `is_mine`
        is `True` if one of these devices wrote the value that lost.
        """
        return cls._from_document(number, msgspec.json.decode(document), own)

    @classmethod
    def _from_document(
        cls, number: int | None, document: dict[str, Any], own: Container[str]
    ) -> Loss:
        members = {name: value for name, value in document.items() if name != "op"}
        return cls(number, **members, is_mine=document["lost"]["device"] in own)


class Callbacks:
    """Keeps the callbacks that an app has added, and calls them during a sync. Each replica has
    one such object, `Replica.callbacks`.

    Each `on_...` method adds a function and returns the function, so the method can be used as
    a decorator. Callbacks run in the thread that syncs. An exception in a callback is logged,
    and syncing continues.

        @replica.callbacks.on_change
        def show(change):
            print(change.collection, change.id, change.record)
    """

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callable[..., None]]] = {}

    def on_change(self, callback: Callable[[Change], None]) -> Callable[[Change], None]:
        """Adds a function that is called with a `Change` for each record that a sync has
        changed.
        """
        return self._add("change", callback)

    def on_refusal(self, callback: Callable[[Refusal], None]) -> Callable[[Refusal], None]:
        """Adds a function that is called with a `Refusal` for each changeset that the
        server did not accept.
        """
        return self._add("refusal", callback)

    def on_loss(self, callback: Callable[[Loss], None]) -> Callable[[Loss], None]:
        """Adds a function that is called with a `Loss` for each conflict in which this
        device wrote one of the two values.
        """
        return self._add("loss", callback)

    def on_progress(self, callback: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Adds a function that is called while a snapshot is loaded, with the number of
        records loaded so far and the total number of records.
        """
        return self._add("progress", callback)

    @contextmanager
    def changes(self) -> Iterator[Callable[[float], Iterator[Change]]]:
        """Returns a context manager that collects `Change` objects in a queue, for an app that
        handles the changes in its own thread.

        The `with` block gets a function, which is named `next_changes` in the example. Each call of
        the function returns an iterator of the collected `Change` objects. The iterator waits up to
        `timeout_seconds` for the next change, and ends if none arrives in this time. The app may
        call the function several times.

            with replica.callbacks.changes() as next_changes:
                for change in next_changes(5.0):
                    print(change.id)
        """
        arrived: SimpleQueue[Change] = SimpleQueue()
        self.on_change(arrived.put)

        def next_changes(timeout_seconds: float) -> Iterator[Change]:
            while True:
                try:
                    yield arrived.get(timeout=timeout_seconds)
                except Empty:
                    return

        try:
            yield next_changes
        finally:
            self._callbacks["change"].remove(arrived.put)

    def notify_change(self, change: Change) -> None:
        self._notify("change", change)

    def notify_refusal(self, refusal: Refusal) -> None:
        self._notify("refusal", refusal)

    def notify_loss(self, loss: Loss) -> None:
        self._notify("loss", loss)

    def notify_progress(self, done: int, total: int) -> None:
        self._notify("progress", done, total)

    def _add(self, kind: str, callback: Callback) -> Callback:
        self._callbacks.setdefault(kind, []).append(callback)
        return callback

    def _notify(self, kind: str, *arguments: Any) -> None:
        for callback in list(self._callbacks.get(kind, ())):
            try:
                callback(*arguments)
            except Exception:
                log.exception("a callback of the app failed")
