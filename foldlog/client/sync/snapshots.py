"""Loads a snapshot: the current records of the space, instead of all events that made them.

The server sends a snapshot as lines (docs/reference/protocol.md). The first line is a header with
the seq from which the device continues to pull events. The records follow in pages; each page ends
with a cursor and the seq at which its records were read. A page and its cursor are saved in one
local transaction, so an interrupted download resumes, even after a crash. The app reads its old
records until the snapshot is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import msgspec

from foldlog.client.errors import ConnectionBroke
from foldlog.client.store.local_store import LocalStore
from foldlog.client.transport.responses import not_foldlog
from foldlog.client.transport.server import Server
from foldlog.domain.merge import Key, Record
from foldlog.domain.snapshot import (
    SnapshotHeader,
    SnapshotPageEnd,
    snapshot_erasure,
    snapshot_header,
    snapshot_line,
)

from .pace import Pace

Lines = Generator[bytes, None, None]


class HistoryDiverged(Exception):
    """Raised when the server's log lacks events that this device has applied, for example after
    a restore from a backup.
    """


class SnapshotLoader:
    """Loads a snapshot into the local store.

    After each page, `report(done, total)` is called with the number of loaded records and of
    all records.
    """

    def __init__(
        self,
        store: LocalStore,
        server: Server,
        pace: Pace,
        report: Callable[[int, int], None],
    ):
        self._store = store
        self._database = store.database
        self._meta = store.meta
        self._server = server
        self._pace = pace
        self._report = report
        self._begun: tuple[SnapshotHeader, Lines] | None = None  #: a download to go on with

    @property
    def is_loading(self) -> bool:
        return self._meta.get("snapshot") is not None

    @property
    def is_resumed(self) -> bool:
        """Whether at least one page of the current snapshot was saved already."""
        return self.is_loading and self._meta.get("snapshot")["cursor"] is not None

    def is_shorter(self, after: int) -> bool:
        """Requests the header of the snapshot from the server. Returns `True` if the snapshot has
        fewer records than the log has events after seq `after`; `load` then goes on with this
        download.
        """
        header, lines = self._download(None)
        if header.records >= header.seq - after:
            lines.close()
            return False
        self._begun = header, lines
        return True

    def close(self) -> None:
        """Ends a download that `is_shorter` has begun, if `load` did not go on with it."""
        if self._begun is not None:
            _, lines = self._begun
            self._begun = None
            lines.close()

    def _download(self, cursor: str | None) -> tuple[SnapshotHeader, Lines]:
        """Begins to download the snapshot after `cursor`. Returns the header and the other lines.

        Raises `ConnectionBroke` if the answer is empty, and `NotFoldlog` if it is no snapshot.
        """
        if cursor is None and self._begun is not None:
            begun, self._begun = self._begun, None
            return begun
        self.close()
        lines = self._server.snapshot(cursor)
        try:
            for line in lines:
                return snapshot_header(line), lines
        except msgspec.DecodeError as exc:
            lines.close()
            raise not_foldlog() from exc
        raise ConnectionBroke("the download of the snapshot was interrupted")

    def begin(self) -> None:
        """Marks all records as stale (to be replaced), and saves in the file that a
        snapshot must be loaded. The next call of `load` loads the snapshot.
        """
        with self._database.transaction() as db:
            db.execute("UPDATE records SET is_stale = 1, as_of = 0 WHERE sync_status <> 2")
            self._meta.set(
                snapshot={"cursor": None, "seq": None, "mark": None, "done": 0}, ahead=None
            )

    def load(self) -> list[Key]:
        """Loads the pages of the snapshot that are still missing. Returns the keys of the
        records that changed.

        Raises `Unreachable` if the download breaks, and `NotFoldlog` if another server answers.
        Raises `HistoryDiverged` if the server has lost events that this device has applied.
        """
        state = self._meta.get("snapshot")
        header, lines = self._download(state["cursor"])
        with closing(lines):
            if state["seq"] is None:
                # The first answer sets the seq. Later pages may be newer: see `as_of`.
                state |= {"seq": header.seq, "mark": header.mark, "log": header.log}
            total = state["done"] + header.records
            page: list[Record] = []
            erased = state.setdefault("erased", [])
            for raw in lines:
                try:
                    line = snapshot_line(raw)
                except msgspec.DecodeError as exc:
                    raise not_foldlog() from exc
                if isinstance(line, Record):
                    page.append(line)
                    if erased_seq := snapshot_erasure(raw):
                        self._store.erasure.erase((line.collection, line.id), erased_seq)
                        erased.append([line.collection, line.id, erased_seq])
                    continue
                state["done"] += len(page)
                if line.at > state["seq"]:
                    # `at` only grows within a history, so the last one is the highest.
                    state["ahead"] = {"seq": line.at, "mark": line.mark}
                if line.cursor is None:
                    break
                self._store_page(page, line, state)
                self._pace.note_answer()
                self._report(state["done"], max(total, state["done"]))
                page = []
            else:
                raise ConnectionBroke("the download of the snapshot was interrupted")
        self._check_history()
        changed = self._store_page(page, line, state)
        self._report(state["done"], state["done"])
        return changed

    def _check_history(self) -> None:
        """Raises `HistoryDiverged` if the server has lost events that this device has
        applied.

        Call this method before the snapshot replaces the cursor, because the check needs
        the old cursor.
        """
        after = self._meta.after
        if after and not self._server.has_mark(after, self._meta.mark):
            raise HistoryDiverged

    @property
    def ahead(self) -> dict[str, Any] | None:
        """A dict with the seq and the mark at which the server read the newest page of the
        snapshot. This seq can be greater than the seq in the snapshot's header.

        The value is `None` if the two seqs are equal, or after the cursor has reached the seq of
        the newest page.
        """
        ahead: dict[str, Any] | None = self._meta.get("ahead")
        return ahead

    def check_ahead(self, answer: dict[str, Any]) -> None:
        """Raises `HistoryDiverged` if the answer to a pull shows that the server has lost events of
        the loaded snapshot. The check uses the newest page of the snapshot.

        The events are lost if the server's log ends before the seq of this page, or if the log has
        another mark at this seq.
        """
        ahead = self.ahead
        if ahead is None:
            return
        is_reached = answer["through"] == ahead["seq"]
        if answer["head"] < ahead["seq"] or (is_reached and answer["mark"] != ahead["mark"]):
            raise HistoryDiverged
        if is_reached:
            self._meta.set(ahead=None)

    def _store_page(
        self, page: list[Record], end: SnapshotPageEnd, state: dict[str, Any]
    ) -> list[Key]:
        """Saves the records of a page, and the cursor of the next page, in one transaction.

        If the page has no cursor, it is the last page: the method completes the snapshot and
        returns a list of the keys of the records that changed. For other pages, the method returns
        an empty list.
        """
        with self._database.transaction():
            self._store.view.confirm(page, as_of=end.at)
            state["cursor"] = end.cursor
            self._meta.set(snapshot=state)
            if end.cursor is None:
                return self._finish(state)
        return []

    def _finish(self, state: dict[str, Any]) -> list[Key]:
        """Completes the snapshot: deletes the records that the snapshot lacks, and sets the
        cursor to the seq of the snapshot.

        Returns the keys of the records that changed.
        """
        seq, queue = state["seq"], self._store.queue
        with self._database.transaction() as db:
            for collection, id, erased_seq in state.get("erased", ()):
                # Again, for the changesets that were made during the download.
                self._store.erasure.erase((collection, id), erased_seq)
            db.execute("UPDATE records SET confirmed = NULL, as_of = 0 WHERE is_stale")
            for queued in queue.select("stored"):
                if queued.seq is not None and queued.seq <= seq:
                    # The records should contain it, but its event will not be pulled. It is sent
                    # again for a verdict, because a restored server may have lost it.
                    queue.set_state(queued.id, "waiting", queued.seq)
            self._meta.set(
                after=seq,
                mark=state["mark"],
                log=state["log"],
                head=seq,
                snapshot=None,
                ahead=state.get("ahead"),
            )
            if seq:
                self._store.marks.add(seq, state["mark"])
            keys = db.execute(
                "SELECT collection, id FROM records WHERE sync_status <> 2"
            ).fetchall()
            changed = self._store.view.refresh(keys)
            db.execute("DELETE FROM records WHERE is_stale AND NOT is_there AND sync_status <> 2")
            db.execute("UPDATE records SET is_stale = 0")
        return changed
