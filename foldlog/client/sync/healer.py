"""Healing: a device repairs its local state after the server has refused a request.

Causes are restored or cloned devices, restored servers, and changesets that the server cannot
store. Each repair changes the local store, so that the next request gets further.
"""

from __future__ import annotations

from msgspec import UNSET

from foldlog.client.errors import ServerProblem
from foldlog.client.store.local_store import LocalStore
from foldlog.client.store.queue import Queued
from foldlog.client.transport.server import Server
from foldlog.domain.times import format_time

from .batch import PushBatch
from .results import SyncResult
from .snapshots import SnapshotLoader


class Healer:
    """Repairs the local store. `batch` is the batch of the refused request."""

    def __init__(
        self, store: LocalStore, server: Server, snapshots: SnapshotLoader, batch: PushBatch
    ):
        self._store = store
        self._server = server
        self._snapshots = snapshots
        self._batch = batch

    def heal(self, exc: ServerProblem, result: SyncResult) -> bool:
        """Repairs the cause of a problem. Returns `False` if only waiting can help."""
        index = exc.document.get("index")
        match exc.problem:
            case "limit-exceeded" if exc.status == 413:
                return self._batch.halve() or self._reject(0, exc, result)
            case "invalid-changeset" | "limit-exceeded" | "id-reused" if isinstance(index, int):
                return self._reject(index, exc, result)
            case "counter-gap":
                return self._renumber(exc)
            case "device-forked":
                self.change_device(exc.problem, result)
            case "invalid-request" if self._snapshots.is_resumed:
                self._snapshots.begin()  # the cursor of the download is unknown to this server
            case "log-behind" | "log-changed":
                self.rewind(exc.problem, result)
            case "unknown-space" if self._snapshots.is_loading:
                self._recreate_space()
            case _:
                return False
        return True

    def _reject(self, index: int, exc: ServerProblem, result: SyncResult) -> bool:
        """Marks a changeset as rejected, because the server can never store it."""
        batch = self._batch.select()
        if index >= len(batch):
            return False
        rejected, queue = batch[index], self._store.queue
        # The server has the changeset with values that are erased here: it has lost the erasure.
        is_known = exc.problem == "id-reused" and _has_erased(rejected)
        with self._store.database.transaction():
            if is_known:
                queue.remove(rejected.id)
            else:
                why = {"code": exc.problem, "detail": str(exc.document.get("detail", ""))}
                queue.set_state(rejected.id, "rejected", why=why)
                result.refused.append(rejected.id)
            queue.renumber(batch[0].counter or 1)
            result.changed += self._store.view.refresh({op.key for op in rejected.ops})
        return True

    def _renumber(self, exc: ServerProblem) -> bool:
        """Renumbers the queue from the counter that the server expects."""
        index, expected = exc.document.get("index", 0), exc.document.get("expected")
        if not isinstance(expected, int) or index >= len(self._batch.select()):
            return False
        # The changesets before `index` have the right counters, or are in the log already.
        self._store.queue.renumber(expected, skip=index)
        return True

    def change_device(self, reason: str, result: SyncResult) -> None:
        """Takes a new device id, because the old one is in use by another copy of the replica.

        Queued changesets keep their ids.
        """
        store = self._store
        with store.database.transaction():
            earlier = [*store.meta.get("earlier_devices", []), store.meta.device]
            store.meta.set(device=store.new_id(), earlier_devices=earlier)
            store.queue.renumber(1)
            # Operations of the old and the new device are concurrent now, which changes the merge.
            queued = store.queue.select("waiting", "stored")
            changed = store.view.refresh({op.key for one in queued for op in one.ops})
        result.changed += changed
        result.healed.append(reason)

    def rewind(self, reason: str, result: SyncResult) -> None:
        """Returns to the last mark that the server shares, because it has lost later events.

        Queues the lost changesets of this device again, and begins to load a snapshot.
        """
        shared, mark = self._last_shared_mark()
        store, queue = self._store, self._store.queue
        with store.database.transaction():
            lost = store.sent.pop_after(shared)
            first = next((queued.counter for queued in lost if queued.counter), None)
            for queued in queue.select("stored"):
                queue.set_state(queued.id, "waiting")
            queue.put_first(lost)
            queue.cut_bases(shared)
            if first is not None:
                queue.renumber(first)
            store.marks.delete_after(shared)
            skipped = [skip for skip in store.meta.get("skipped", []) if skip[1] <= shared]
            # The cursor is also the base of changesets that are made before the snapshot is loaded.
            store.meta.set(after=shared, mark=mark, skipped=skipped)
            self._snapshots.begin()
        result.healed.append(reason)

    def _last_shared_mark(self) -> tuple[int, str]:
        """Finds the last (seq, mark) that the server's log shares, by binary search."""
        marks = self._store.marks.all()
        low, high = 0, len(marks)
        while low < high:
            middle = (low + high) // 2
            if self._server.has_mark(*marks[middle]):
                low = middle + 1
            else:
                high = middle
        return marks[low - 1] if low else (0, "")

    def _recreate_space(self) -> None:
        """Creates the space on a server that has lost it. An empty sync creates a space."""
        device, sent_at = self._store.meta.device, format_time(self._store.now_ms())
        self._server.sync({"device": device, "sent_at": sent_at, "after": 0, "mark": ""})


def _has_erased(queued: Queued) -> bool:
    return any(op.erased is not UNSET for op in queued.ops)
