"""Applies an answer of the server to the local store.

Each answer is applied in one transaction of the local SQLite file, which saves the records, the
queue and the cursor together. If the process crashes before the commit, the file stays as it was,
and the next sync requests the answer again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from foldlog.client.errors import IncompletePage
from foldlog.client.store.erasure import without_values
from foldlog.client.store.local_store import LocalStore
from foldlog.client.store.queue import Queued
from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import Conflict, Key, fold
from foldlog.domain.times import parse_time

from .results import SyncResult
from .snapshots import SnapshotLoader

#: acknowledged changesets are kept for 30 days, in case the server is restored from a backup
KEEP_SENT_MS = 30 * 24 * 3_600_000
#: records that are folded together; the records of one event always are
RECORDS_AT_ONCE = 200


class UnknownOwnEvent(Exception):
    """Raised when the server's log has a changeset of this device that is missing in the
    replica's file.

    There are two possible causes: the file was restored from an older copy, or a second copy of
    the file is in use.
    """


class Applier:
    """Writes the verdicts and the events of the server's answers to the local store."""

    def __init__(self, store: LocalStore, snapshots: SnapshotLoader):
        self._store = store
        self._snapshots = snapshots

    def apply(
        self, answer: dict[str, Any], after: int, device: str, sent_at: int, result: SyncResult
    ) -> None:
        """Applies the server's answer to a sync request. `device` and `after` are the device id and
        the cursor that were sent in the request. `sent_at` is the time of the request in ms since
        1970.

        Adds the changed records, the refused changesets, the conflicts and the number of events to
        `result`. If another process has changed the cursor or the device id since the request, the
        answer is ignored, and a later request gets the events again.

        Raises `UnknownOwnEvent` if the log has a changeset of this device that is missing in this
        file. Raises `HistoryDiverged` if the server has lost events, and `IncompletePage` if an
        event is unreadable.
        """
        store, meta = self._store, self._store.meta
        try:
            events = [msgspec.convert(event, Event) for event in answer["events"]]
        except msgspec.ValidationError as exc:
            raise IncompletePage(f"an event after {after} cannot be read: {exc}") from exc
        page = SyncResult()  # merged into `result` after the commit
        with store.database.transaction():
            if (meta.after, meta.device) != (after, device):
                return
            self._snapshots.check_ahead(answer)
            if events:
                meta.set(server_ms=parse_time(events[-1].received_at))
            touched = self.apply_verdicts(answer["verdicts"], sent_at, page)
            must_reload = self._note_skipped(events, after)
            touched |= self._fold(events, device, page)
            self._requeue_lost(answer["through"], answer["head"])
            meta.set(
                after=answer["through"],
                mark=answer["mark"],
                head=answer["head"],
                log=answer["log"],
                synced_at=store.now_ms(),
            )
            if answer["through"] > after:
                store.marks.add(answer["through"], answer["mark"])
                store.marks.thin_out()
                store.sent.delete_before(self._server_ms() - KEEP_SENT_MS)
            page.changed = store.view.refresh(touched)
            if must_reload:
                self._snapshots.begin()
        result.changed += page.changed
        result.refused += page.refused
        result.conflicts += page.conflicts
        result.pulled += len(events)

    def apply_verdicts(
        self, verdicts: list[dict[str, Any]], sent_at: int, result: SyncResult
    ) -> set[Key]:
        """Saves the server's verdicts on queued changesets. A verdict says whether the server has
        stored or refused the changeset. Returns the set of the keys of all records in these
        changesets.
        """
        keys: set[Key] = set()
        with self._store.database.transaction():
            for verdict in verdicts:
                queued = self._store.queue.find(verdict["id"])
                if queued is None or queued.state != "waiting":
                    continue
                if not verdict.get("duplicate"):
                    received_at = parse_time(verdict["received_at"])
                    # The error of this device's clock, used to predict the winner of a tie.
                    self._store.meta.set(server_ms=received_at, skew=received_at - sent_at)
                keys |= self._apply_verdict(queued, verdict["verdict"], verdict, result)
        return keys

    def _apply_verdict(
        self, queued: Queued, verdict: str, answer: dict[str, Any], result: SyncResult
    ) -> set[Key]:
        if verdict == "refused":
            self._store.queue.set_state(queued.id, "refused", answer["seq"], answer["refusal"])
            result.refused.append(queued.id)
        elif answer["seq"] <= self._store.meta.after:
            self._acknowledge(queued, answer["seq"])  # its event was pulled before
        else:
            self._store.queue.set_state(queued.id, "stored", answer["seq"])
        return {op.key for op in queued.ops}

    def _acknowledge(self, queued: Queued, seq: int) -> None:
        """Moves a changeset from the queue to the table `sent`, which keeps the changeset for
        30 days.
        """
        self._store.sent.add(queued, seq, self._server_ms())
        self._store.queue.remove(queued.id)

    def _server_ms(self) -> int:
        """Returns the time of the server's clock in ms since 1970, from the last answer that
        contained a time. This time decides which sent changesets are old enough to be deleted.

        If no answer has contained a time yet, returns the time of the device's clock. The server's
        time is preferred because the clock of a device may jump.
        """
        return int(self._store.meta.get("server_ms") or self._store.now_ms())

    def _note_skipped(self, events: list[Event], after: int) -> bool:
        """Saves the seqs of the skipped events. An operator can exclude an event from all records;
        the log then gets a later event of the kind `event-skipped`, which contains the seq of the
        excluded event.

        Returns `True` if this device has already applied an event that is now skipped. The records
        of the device are wrong in this case, and the caller must replace the records with a
        snapshot.
        """
        skips = [[e.skipped_seq, e.seq] for e in events if e.skipped_seq is not None]
        known: list[list[int]] = self._store.meta.get("skipped", []) if skips else []
        new = [skip for skip in skips if skip not in known]
        if new:
            self._store.meta.set(skipped=[*known, *new])
        return any(seq <= after for seq, _ in new)

    def _requeue_lost(self, through: int, head: int) -> None:
        """Finds the changesets in the queue that the server had stored and has lost since then.
        Sets the state of these changesets to "waiting", so that they are sent again.

        A changeset is lost if the seq of its event is greater than `head`, the last seq of the log.
        It is also lost if the seq is at most `through`, the last seq in the answer, and the event
        did not arrive. The cause is a restore of the server from a backup.
        """
        queue = self._store.queue
        lost = [
            queued
            for queued in queue.select("stored")
            if queued.seq is not None and not through < queued.seq <= head
        ]
        for queued in lost:
            queue.set_state(queued.id, "waiting")
        if lost:
            queue.renumber(lost[0].counter or 1)

    def _fold(self, events: list[Event], device: str, result: SyncResult) -> set[Key]:
        """Applies a page of events to the records as confirmed by the server. If the page has
        events of this device's changesets, removes these changesets from the queue.

        Returns the keys of the records that the events touch.
        """
        view, touched = self._store.view, set[Key]()
        for event in events:
            # First of all, because own operations that are restored below may be erased by it.
            if event.erased_key is not None:
                self._store.erasure.erase(event.erased_key, event.seq)
        for event in events:
            if event.kind == "changeset":
                touched |= self._complete_own(event, device, result)
        skipped = {seq for seq, _ in self._store.meta.get("skipped", [])}
        for event in events:
            if event.seq in skipped:
                event.ops = []
        for part, keys in _parts(events):
            records, as_of = view.confirmed(keys)
            for event in part:
                # A record of a snapshot may be ahead of the cursor, and contain these operations.
                event.ops = [op for op in event.ops if event.seq > as_of.get(op.key, 0)]
                if event.erased_key is not None and event.seq <= as_of.get(event.erased_key, 0):
                    continue
                for conflict in fold(records, event):
                    self._add_conflict(conflict, result)
            view.confirm(records.values())
            touched |= keys
        return touched

    def _complete_own(self, event: Event, device: str, result: SyncResult) -> set[Key]:
        """Updates the queue if this device made the changeset of the event. If the server stored
        the changeset, removes the changeset from the queue. If the server refused the changeset,
        saves the refusal in the queue.

        If this device made the event, the event arrives without its operations, because the device
        has them. The method first copies the operations to the event, from the queue or from the
        sent changesets.

        Returns a set of record keys: after a refusal, the keys of all records in the changeset;
        otherwise, the keys of the erased records in the changeset. Raises `UnknownOwnEvent` if
        `_own_operations` raises it.
        """
        queue = self._store.queue
        queued = queue.find(event.id)
        if event.device == device and not event.ops:
            event.ops = self._own_operations(event, queued)
        if queued is None:
            return set()
        erased = {op.key for op in event.ops if op.erased is not UNSET}
        if erased:
            queued.ops = [without_values(op) if op.key in erased else op for op in queued.ops]
            queue.set_ops(queued)
        if event.verdict == "stored":
            self._acknowledge(queued, event.seq)
            return erased
        if queued.state == "waiting":
            assert event.refusal is not UNSET
            refusal = msgspec.to_builtins(event.refusal)
            return self._apply_verdict(
                queued, "refused", {"seq": event.seq, "refusal": refusal}, result
            )
        return set()

    def _own_operations(self, event: Event, queued: Queued | None) -> list[Operation]:
        """Returns a list of the operations of an event of this device, from the queue or from the
        sent changesets.

        Raises `UnknownOwnEvent` in two cases, if the server stored the changeset. In the first
        case, this device lacks the changeset. In the second case, more operations are erased on
        this device than in the server's event: the server has lost an erasure.
        """
        ops = self._store.sent.ops_of(event.id) if queued is None else queued.ops
        if ops is None and event.verdict == "stored":
            raise UnknownOwnEvent
        erased_there = event.erased or []
        own = [
            without_values(op) if number in erased_there else op
            for number, op in enumerate(ops or [])
        ]
        erased_here = sum(op.erased is not UNSET for op in own)
        if event.verdict == "stored" and erased_here > len(erased_there):
            # The server has lost an erasure. A new device id makes it send whole events.
            raise UnknownOwnEvent
        return own

    def _add_conflict(self, conflict: Conflict, result: SyncResult) -> None:
        """Saves a conflict in the replica's file and in `result`, if this device wrote one of
        the two values.
        """
        devices = {conflict.lost.device, conflict.won.device}
        if not self._store.meta.own_devices.isdisjoint(devices):
            result.conflicts.append(conflict)
            self._store.conflicts.add(conflict)


def _parts(events: list[Event]) -> Iterator[tuple[list[Event], set[Key]]]:
    """Splits events into parts, and yields each part with the set of the keys of its records. A
    part has at most 200 records, so that folding needs little memory.

    If a single event touches more than 200 records, the event becomes a part of its own.
    """
    part: list[Event] = []
    keys: set[Key] = set()
    for event in events:
        if part and len(keys.union(event.keys)) > RECORDS_AT_ONCE:
            yield part, keys
            part, keys = [], set()
        part.append(event)
        keys.update(event.keys)
    if part:
        yield part, keys
