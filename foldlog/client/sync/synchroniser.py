"""Runs one sync: sends requests until the server has all changesets of the device, and the device
has all events of the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from foldlog.client.errors import ConnectionBroke, IncompletePage, ServerProblem
from foldlog.client.store.local_store import LocalStore
from foldlog.client.transport.server import Server
from foldlog.client.transport.stream import Page
from foldlog.domain.events import Event
from foldlog.domain.times import format_time

from .applier import Applier, UnknownOwnEvent
from .batch import PushBatch
from .healer import Healer
from .pace import Pace
from .results import PageResult, SyncResult
from .snapshots import HistoryDiverged, SnapshotLoader

#: page size up to the head of a loaded snapshot, in events
PAGE_AHEAD = 100
#: a device that has not synced for so long asks for the head first, with a page of one event
AWAY_MS = 24 * 3_600_000
#: requests of one sync, in case a server answers `more` for ever
ROUNDS_MAX = 100_000
#: repairs of one sync
HEALS_MAX = 1_000
#: with more missing events than this, loading a snapshot is considered
SNAPSHOT_EVENTS_MIN = 2_000


class Synchroniser:
    """Syncs a local store with a server.

    While a snapshot is loaded, `report(done, total)` is called with the number of loaded
    records and of all records.
    """

    def __init__(
        self,
        store: LocalStore,
        server: Server,
        pace: Pace,
        batch: PushBatch,
        report: Callable[[int, int], None] = lambda done, total: None,
    ):
        self._store = store
        self._server = server
        self._pace = pace
        self._batch = batch
        self._snapshots = SnapshotLoader(store, server, pace, report)
        self._applier = Applier(store, self._snapshots)
        self._healer = Healer(store, server, self._snapshots, batch, pace)
        self._may_load_snapshot = True
        self.result = SyncResult()  #: kept here because it also counts when `run` raises

    def run(self) -> SyncResult:
        """Sends all waiting changesets and pulls all new events. Returns the result of the
        sync.

        Raises `ServerProblem` if the server answers with an error that cannot be repaired,
        `IncompletePage` if events are missing in an answer, and `Unreachable` if the server gives
        no answer. The changes made by earlier requests stay
        in the local store, and the attribute `result` describes them.
        """
        try:
            return self._run()
        finally:
            self._snapshots.close()
            self._store.erasure.scrub()

    def _run(self) -> SyncResult:
        result = self.result
        self._may_load_snapshot = True
        heals = 0
        for _ in range(ROUNDS_MAX):
            self._server.page_bytes = self._pace.page_bytes
            try:
                if self._snapshots.is_loading:
                    result.changed += self._snapshots.load()
                if not self._round(result):
                    break
            except UnknownOwnEvent:
                self._healer.change_device("restored", result)
            except HistoryDiverged:
                self._healer.rewind("log-changed", result)
            except ConnectionBroke as exc:
                if not self._pace.note_break() or exc.timed_out:
                    raise
            except ServerProblem as exc:
                heals += exc.status != 413  # halving a batch ends by itself
                if heals > HEALS_MAX or not self._healer.heal(exc, result):
                    raise
        return result

    def apply_page(self, page: Page) -> PageResult:
        """Applies a page of the live channel if the page has exactly the events that a pull would
        return now. Returns `APPLIED` in this case.

        If the page has other events, the method leaves out the page, and returns the reason. If the
        reason is `NEEDS_SYNC`, the caller must run a sync, because only a sync can repair problems.
        """
        try:
            events = [msgspec.convert(event, Event) for event in page.answer["events"]]
            result = self._check_page(page, [event.seq for event in events])
            if result is PageResult.APPLIED:
                answer = {**page.answer, "verdicts": []}
                self._applier.apply(
                    answer, page.after, page.device, self._store.now_ms(), self.result
                )
                self._store.erasure.scrub()
        except (UnknownOwnEvent, HistoryDiverged, msgspec.ValidationError):
            return PageResult.NEEDS_SYNC
        return result

    def _check_page(self, page: Page, seqs: list[int]) -> PageResult:
        """Returns `APPLIED` if a page of the live channel can be applied, and otherwise the reason
        why the page must be left out. A page can be applied if it begins at the cursor, is
        complete, and continues the same log. `seqs` are the seqs of the events of the page.

        In a pull, the server checks the cursor in each request. On the live channel, the server
        checks the cursor only when a stream begins. The check is needed here because the local
        store may change after the stream has begun.
        """
        meta, answer = self._store.meta, page.answer
        after, through = meta.after, answer["through"]
        is_own = (page.device, answer["log"]) == (meta.device, meta.get("log"))
        is_whole = seqs == list(range(page.after + 1, through + 1))
        is_loading = self._snapshots.is_loading or self._snapshots.ahead is not None
        if not is_own or not is_whole or is_loading or page.after > after:
            return PageResult.NEEDS_SYNC
        if through <= after:
            is_shared = self._store.marks.at(through) in (None, answer["mark"])
            return PageResult.DUPLICATE if is_shared else PageResult.NEEDS_SYNC
        if page.after < after:
            return PageResult.OVERLAPS
        is_next = page.mark == meta.mark and answer["head"] >= meta.get("head", 0)
        is_near = answer["head"] - after <= SNAPSHOT_EVENTS_MIN
        return PageResult.APPLIED if is_next and is_near else PageResult.NEEDS_SYNC

    def _round(self, result: SyncResult) -> bool:
        """Sends the next batch of changesets in one request, and applies the answer to the
        local store. Returns `True` if another request is needed.
        """
        meta = self._store.meta
        after, device = meta.after, meta.device
        batch = self._batch.select()
        sent_at = self._store.now_ms()
        body: dict[str, Any] = {
            "device": device,
            "sent_at": format_time(sent_at),
            "after": after,
            "mark": meta.mark,
        }
        body |= self._page_limits(after)
        if batch:
            body["changesets"] = [queued.to_wire() for queued in batch]
        answer = self._server.sync(body)
        _check_page(answer, after)
        if self._should_load_snapshot(answer["head"] - after):
            with self._store.database.transaction():
                touched = self._applier.apply_verdicts(answer["verdicts"], sent_at, result)
                result.changed += self._store.view.refresh(touched)
                self._snapshots.begin()
            return True
        self._applier.apply(answer, after, device, sent_at, result)
        self._pace.note_answer()  # only now, because a repeated answer is no progress
        result.pushed += len(batch)
        self._batch.grow()
        return bool(answer["more"]) or self._store.queue.count("waiting") > 0

    def _page_limits(self, after: int) -> dict[str, int]:
        """Returns the members of a request that limit the page of its answer."""
        limits = {}
        if self._pace.page_bytes is not None:
            limits["bytes"] = self._pace.page_bytes
        sizes = [self._pace.events_max]
        ahead = self._snapshots.ahead
        if ahead is not None:
            # The page must end at the seq of the snapshot, because their marks are compared.
            sizes += [PAGE_AHEAD, ahead["seq"] - after]
        if self._asks_for_head():
            sizes.append(1)
        known = [size for size in sizes if size is not None]
        if known:
            limits["limit"] = min(known)
        return limits

    def _asks_for_head(self) -> bool:
        """Whether the next page should have one event, because a snapshot may replace the others.
        This is the case for a new device, and for one that was away for long.
        """
        synced_at = self._store.meta.get("synced_at")
        return self._may_load_snapshot and (
            synced_at is None or self._store.now_ms() - synced_at > AWAY_MS
        )

    def _should_load_snapshot(self, missing: int) -> bool:
        """Returns `True` if the device should load a snapshot instead of pulling the missing
        events. This is the case if the snapshot has fewer records than there are missing events.

        `missing` is the number of missing events. The method begins the download of the snapshot,
        whose header has the number of records. It does so at most once in a sync, and only if more
        than 2,000 events are missing.
        """
        if missing <= SNAPSHOT_EVENTS_MIN or not self._may_load_snapshot:
            return False
        try:
            is_shorter = self._snapshots.is_shorter(self._store.meta.after)
        except ServerProblem:
            is_shorter = False  # the master table may be behind, and the events still come
        self._may_load_snapshot = False
        return is_shorter


def _check_page(answer: dict[str, Any], after: int) -> None:
    """Checks that an answer has every event after the seq `after`, because no filter was asked for.

    Raises `IncompletePage` if events are missing or unreadable, or if `more` is true without
    progress.
    """
    seqs = [event["seq"] for event in answer["events"]]
    through = answer["through"]
    if seqs != list(range(after + 1, after + 1 + len(seqs))) or through != after + len(seqs):
        raise IncompletePage(f"the events after {after}, up to {through}, are incomplete")
    if answer["more"] and not seqs:
        raise IncompletePage(f"there are more events after {after}, but none came")
