"""Repairs the local store of a device after the server has answered a request with an error.

A repair is possible for three causes of an error: the device was cloned or restored from a copy,
the server was restored from a backup, or the request has a changeset that the server can never
store. After the repair, the sync sends a new request.
"""

from __future__ import annotations

from msgspec import UNSET

from foldlog.client.errors import ServerProblem
from foldlog.client.store.local_store import LocalStore
from foldlog.client.store.queue import Queued
from foldlog.client.transport.server import Server
from foldlog.domain.times import format_time

from .batch import PushBatch
from .pace import Pace
from .results import SyncResult
from .snapshots import SnapshotLoader


class Healer:
    """Repairs the local store after the server has answered a request with an error. `batch` is
    the object that chose the changesets of the request.
    """

    def __init__(
        self,
        store: LocalStore,
        server: Server,
        snapshots: SnapshotLoader,
        batch: PushBatch,
        pace: Pace,
    ):
        self._store = store
        self._server = server
        self._snapshots = snapshots
        self._batch = batch
        self._pace = pace

    def heal(self, exc: ServerProblem, result: SyncResult) -> bool:
        """Repairs the cause of a problem that the server reported, so that the request can
        be repeated.

        Returns `True` after a repair, and adds what the repair changed to `result`. Returns
        `False` if the device has no repair for this problem.
        """
        index = exc.document.get("index")
        match exc.problem:
            case _ if exc.status == 413:  # of the service, or of a proxy before it
                return self._batch.halve() or self._reject(0, exc, result)
            case "invalid-changeset" | "limit-exceeded" | "id-reused" if isinstance(index, int):
                return self._reject(index, exc, result)
            case "counter-gap":
                return self._renumber(exc)
            case "device-forked" | "device-taken":
                self.change_device(exc.problem, result)
            case "invalid-request" if self._is_about_bytes(exc):
                self._pace.asks_bytes = False
            case "invalid-request" if self._snapshots.is_resumed:
                self._snapshots.begin()  # the cursor of the download is unknown to this server
            case "log-behind" | "log-changed":
                self.rewind(exc.problem, result)
            case "unknown-space" if self._snapshots.is_loading:
                self._recreate_space()
            case _:
                return False
        return True

    def _is_about_bytes(self, exc: ServerProblem) -> bool:
        """Whether an older service refuses the parameter `bytes`, which it does not know."""
        named = {"parameter": "bytes"}, {"pointer": "/bytes"}
        errors = exc.document.get("errors") or []
        return self._pace.page_bytes is not None and any(
            name.items() <= error.items() for error in errors for name in named
        )

    def _reject(self, index: int, exc: ServerProblem, result: SyncResult) -> bool:
        """Marks one changeset of the batch as rejected, because the server can never store
        it. `index` is its position in the batch, from 0.

        Returns `False` if `index` is after the end of the batch.
        """
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
                if exc.problem == "limit-exceeded":
                    self._store.limits.forget_age()
                why = _reason(exc, rejected)
                queue.set_state(rejected.id, "rejected", why=why)
                result.refused.append(rejected.id)
            queue.renumber(batch[0].counter or 1)
            result.changed += self._store.view.refresh({op.key for op in rejected.ops})
        return True

    def _renumber(self, exc: ServerProblem) -> bool:
        """Gives the waiting changesets new counters, because the server has found a gap in the
        counters. The problem document contains the counter that the server expects, and the
        position in the batch of the changeset that must get this counter.

        Returns `False` if the document lacks the counter, or if the position is after the end of
        the batch.
        """
        index, expected = exc.document.get("index", 0), exc.document.get("expected")
        if not isinstance(expected, int) or index >= len(self._batch.select()):
            return False
        # The changesets before `index` have the right counters, or are in the log already.
        self._store.queue.renumber(expected, skip=index)
        return True

    def change_device(self, reason: str, result: SyncResult) -> None:
        """Gives the replica a new device id, because another copy of the replica uses the old one,
        or because the old one had a token before this device enrolled.

        The changesets in the queue keep their ids and get new counters. `reason` is added
        to `result.healed`.
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
        """Moves the cursor of this device back to the last mark that the server's log still
        has. Called when the server has lost events.

        Changesets of this device that the server has lost are queued again. The next step
        of the sync loads a snapshot, which replaces the records. `reason` is added to
        `result.healed`.
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
        """Returns a pair (seq, mark): the newest stored mark that the server's log also has.
        Returns (0, "") if the server's log has none of the stored marks.

        The method uses a binary search, and sends one request for each step.
        """
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
        """Sends an empty sync request, which creates the space on a server that has lost
        the space.
        """
        device, sent_at = self._store.meta.device, format_time(self._store.now_ms())
        self._server.sync({"device": device, "sent_at": sent_at, "after": 0, "mark": ""})


def _reason(exc: ServerProblem, rejected: Queued) -> dict[str, str]:
    """Returns the reason of a rejection, for `Refusal`. A proxy gives none, so this device does."""
    if exc.status != 413 or exc.problem != "unknown":
        return {"code": exc.problem, "detail": str(exc.document.get("detail", ""))}
    detail = (
        f"the changeset has about {rejected.size} bytes, and the server, or a proxy before it, "
        "refuses requests of this size"
    )
    return {"code": "limit-exceeded", "detail": detail}


def _has_erased(queued: Queued) -> bool:
    return any(op.erased is not UNSET for op in queued.ops)
