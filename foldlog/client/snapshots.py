"""Loading a snapshot: the records as they are, instead of the log that made them.

A snapshot is a stream of lines (docs/reference/protocol.md): a header with the seq that the
device will follow from, records, and after each page the seq at which its records are true and a
cursor. Each page is kept in one local transaction with its cursor, so a download that breaks
goes on where it was, also after a kill. Until the last line the
records that were there before are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from foldlog.domain.merge import Key, Record
from foldlog.domain.snapshot import (
    SnapshotHeader,
    SnapshotPageEnd,
    snapshot_erasure,
    snapshot_header,
    snapshot_line,
)

from .database import Database, Meta
from .errors import Unreachable
from .forgetting import Forgetting
from .queue import Queue
from .server import Server
from .view import View


class OtherHistory(Exception):
    """The server does not share the events that this device has."""


class SnapshotLoader:
    """`report(done, total)` is called after each page, in records."""

    def __init__(
        self,
        database: Database,
        meta: Meta,
        queue: Queue,
        view: View,
        server: Server,
        forgetting: Forgetting,
        report: Callable[[int, int], None],
    ):
        self._database = database
        self._meta = meta
        self._queue = queue
        self._view = view
        self._server = server
        self._forgetting = forgetting
        self._report = report

    @property
    def is_under_way(self) -> bool:
        return self._meta.get("snapshot") is not None

    @property
    def is_resumed(self) -> bool:
        return self.is_under_way and self._meta.get("snapshot")["cursor"] is not None

    def is_shorter(self, after: int) -> bool:
        """Whether the server has fewer records than events that we lack, up to its snapshot."""
        with closing(self._server.snapshot(None)) as lines:
            header = _header(lines)
        return header.records < header.seq - after

    def begin(self) -> None:
        """From now on `go_on` loads a snapshot, until it is whole."""
        with self._database.transaction() as db:
            db.execute("UPDATE records SET is_stale = 1, as_of = 0 WHERE sync_status <> 2")
            self._meta.set(
                snapshot={"cursor": None, "seq": None, "mark": None, "done": 0}, ahead=None
            )

    def go_on(self) -> list[Key]:
        """Loads what is missing; returns the records that look different at the end."""
        state = self._meta.get("snapshot")
        with closing(self._server.snapshot(state["cursor"])) as lines:
            header = _header(lines)
            if state["seq"] is None:
                # Of the first answer: what later pages know beyond it, `as_of` tells.
                state |= {"seq": header.seq, "mark": header.mark, "log": header.log}
            total = state["done"] + header.records
            page: list[Record] = []
            erased = state.setdefault("erased", [])
            for raw in lines:
                line = snapshot_line(raw)
                if isinstance(line, Record):
                    page.append(line)
                    if erased_seq := snapshot_erasure(raw):
                        self._forgetting.forget((line.collection, line.id), erased_seq)
                        erased.append([line.collection, line.id, erased_seq])
                    continue
                state["done"] += len(page)
                if line.at > state["seq"]:
                    # `at` never goes back within a history, so this one is the furthest.
                    state["ahead"] = {"seq": line.at, "mark": line.mark}
                if line.cursor is None:
                    break
                self._keep(page, line, state)
                self._report(state["done"], max(total, state["done"]))
                page = []
            else:
                raise Unreachable("the snapshot broke off")
        self._check_history()
        changed = self._keep(page, line, state)
        self._report(state["done"], state["done"])
        return changed

    def _check_history(self) -> None:
        """Our cursor is about to be replaced: the last time to notice that the server lost events.

        Raises `OtherHistory`.
        """
        after, mark = self._meta.get("after", 0), self._meta.get("mark", "")
        if after and not self._server.shares(after, mark):
            raise OtherHistory

    @property
    def ahead(self) -> dict[str, Any] | None:
        """Seq and mark of the last page, as long as the cursor is before it."""
        ahead: dict[str, Any] | None = self._meta.get("ahead")
        return ahead

    def check_ahead(self, answer: dict[str, Any]) -> None:
        """Raises `OtherHistory` if the log is not the one that the records ahead are of."""
        ahead = self.ahead
        if ahead is None:
            return
        is_there = answer["through"] == ahead["seq"]
        if answer["head"] < ahead["seq"] or (is_there and answer["mark"] != ahead["mark"]):
            raise OtherHistory
        if is_there:
            self._meta.set(ahead=None)

    def _keep(self, page: list[Record], end: SnapshotPageEnd, state: dict[str, Any]) -> list[Key]:
        with self._database.transaction():
            self._view.confirm(page, as_of=end.at)
            state["cursor"] = end.cursor
            self._meta.set(snapshot=state)
            if end.cursor is None:
                return self._finish(state)
        return []

    def _finish(self, state: dict[str, Any]) -> list[Key]:
        """What the snapshot does not have is gone; the cursor goes to where it begins."""
        seq = state["seq"]
        with self._database.transaction() as db:
            for collection, id, erased_seq in state.get("erased", ()):
                # What was made while it was loading had not seen these either.
                self._forgetting.forget((collection, id), erased_seq)
            db.execute("UPDATE records SET confirmed = NULL, as_of = 0 WHERE is_stale")
            for queued in self._queue.select("stored"):
                if queued.seq is not None and queued.seq <= seq:
                    # It should be in these records, but no event tells, and a server that was
                    # restored meanwhile has lost it: it is sent again, to be told.
                    self._queue.set_state(queued.id, "waiting", queued.seq)
            self._meta.set(
                after=seq,
                mark=state["mark"],
                log=state["log"],
                head=seq,
                snapshot=None,
                ahead=state.get("ahead"),
            )
            if seq:
                db.execute(
                    "INSERT OR REPLACE INTO marks (seq, mark) VALUES (?, ?)", (seq, state["mark"])
                )
            keys = db.execute(
                "SELECT collection, id FROM records WHERE sync_status <> 2"
            ).fetchall()
            changed = self._view.refresh(keys)
            db.execute("DELETE FROM records WHERE is_stale AND NOT is_there AND sync_status <> 2")
            db.execute("UPDATE records SET is_stale = 0")
        return changed


def _header(lines: Iterator[bytes]) -> SnapshotHeader:
    for line in lines:
        return snapshot_header(line)
    raise Unreachable("the snapshot broke off")
