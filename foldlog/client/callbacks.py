"""What a replica tells an app of: what arrived, what was refused, what lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

import msgspec

from foldlog.domain.merge import Conflict, conflict_document

from .collection import Record

Callback = TypeVar("Callback", bound=Callable[..., None])

log = logging.getLogger("foldlog")


@dataclass(frozen=True)
class Change:
    """A record that looks different for what arrived; `record` is `None` if it is gone."""

    collection: str
    id: str
    record: Record | None


@dataclass(frozen=True)
class Refusal:
    """A changeset that changes nothing: its guard did not hold, or the server cannot take it."""

    id: str
    state: Literal["refused", "rejected", "waiting", "stored"]
    code: str
    detail: str
    operations: list[dict[str, Any]]


@dataclass(frozen=True)
class Loss:
    """A value that lost to another. `is_mine`: it was this device's user who typed it."""

    number: int | None
    seq: int
    collection: str
    id: str
    field: str
    rule: str
    lost: dict[str, Any]  #: value (if it had one), seq, device
    won: dict[str, Any]
    is_mine: bool

    @classmethod
    def of(cls, conflict: Conflict, own: Container[str]) -> Loss:
        return cls._from(None, conflict_document(conflict), own)

    @classmethod
    def read(cls, number: int, document: str, own: Container[str]) -> Loss:
        return cls._from(number, msgspec.json.decode(document), own)

    @classmethod
    def _from(cls, number: int | None, document: dict[str, Any], own: Container[str]) -> Loss:
        members = {name: value for name, value in document.items() if name != "op"}
        return cls(number, **members, is_mine=document["lost"]["device"] in own)


class Callbacks:
    """Callbacks, called in the thread that syncs; and iterators, for whoever has one of their own.

    A callback that raises is logged and disturbs nobody.
    """

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callable[..., None]]] = {}

    def on_change(self, callback: Callable[[Change], None]) -> Callable[[Change], None]:
        """Called for each record that looks different for what arrived. Usable as a decorator."""
        return self._add("change", callback)

    def on_refusal(self, callback: Callable[[Refusal], None]) -> Callable[[Refusal], None]:
        """Called for each changeset that is refused or rejected."""
        return self._add("refusal", callback)

    def on_loss(self, callback: Callable[[Loss], None]) -> Callable[[Loss], None]:
        """Called for each conflict in which this device had a hand."""
        return self._add("loss", callback)

    def on_progress(self, callback: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Called while a snapshot is loaded, with the records that are there and all of them."""
        return self._add("progress", callback)

    @contextmanager
    def changes(self) -> Iterator[Callable[[float], Iterator[Change]]]:
        """Changes as they arrive: `with notices.changes() as next_ones: for c in next_ones(5.0)`.

        Each call yields what arrives until nothing has come for that many seconds.
        """
        arrived: SimpleQueue[Change] = SimpleQueue()
        self.on_change(arrived.put)

        def next_ones(timeout_seconds: float) -> Iterator[Change]:
            while True:
                try:
                    yield arrived.get(timeout=timeout_seconds)
                except Empty:
                    return

        try:
            yield next_ones
        finally:
            self._callbacks["change"].remove(arrived.put)

    def notify_change(self, change: Change) -> None:
        self._tell("change", change)

    def notify_refusal(self, refusal: Refusal) -> None:
        self._tell("refusal", refusal)

    def notify_loss(self, loss: Loss) -> None:
        self._tell("loss", loss)

    def notify_progress(self, done: int, total: int) -> None:
        self._tell("progress", done, total)

    def _add(self, kind: str, callback: Callback) -> Callback:
        self._callbacks.setdefault(kind, []).append(callback)
        return callback

    def _tell(self, kind: str, *arguments: Any) -> None:
        for callback in list(self._callbacks.get(kind, ())):
            try:
                callback(*arguments)
            except Exception:
                log.exception("a callback of the app failed")
