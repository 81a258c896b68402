"""Runs the syncs of a replica: takes the file lock, calls the callbacks, and counts the traffic."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from foldlog.client.callbacks import Callbacks, Change, Loss, refusal_of
from foldlog.client.errors import (
    ClientError,
    ConnectionBroke,
    FileUnusable,
    ServerProblem,
    Unreachable,
)
from foldlog.client.store.local_store import LocalStore
from foldlog.client.transport.server import Server
from foldlog.client.transport.stream import Page, Stream, Traffic

from .batch import PushBatch
from .file_lock import file_lock
from .pace import Pace
from .results import PageResult, SyncResult
from .synchroniser import Synchroniser


class SyncRunner:
    """Runs syncs of one local store, and calls the app's callbacks after each sync."""

    def __init__(self, store: LocalStore, server: Server | None, callbacks: Callbacks):
        self._store = store
        self._callbacks = callbacks
        self.server = server
        #: records of a snapshot, while it is loaded: done, total
        self.progress: tuple[int, int] | None = None
        self._pace = Pace(self._bytes_passed)
        self._batch = PushBatch(store.queue, self._pace)
        #: whether the last sync sent or received something, even if it failed later
        self.has_progressed = False
        self._unsaved_problem: dict[str, str] | None = None
        self._saved = Traffic()  # traffic of the live channel that is in the file already

    def require_server(self) -> Server:
        """Returns the server. Raises `ClientError` if the replica was opened without a
        server.
        """
        if self.server is None:
            raise ClientError("this replica was opened without a server")
        return self.server

    def run(self) -> SyncResult:
        """Runs one sync and returns its result.

        Raises `ClientError` if the replica was opened without a server. Raises
        `FileLockTaken` if another process is syncing this file. Raises `ServerProblem` if
        the server answers with an error, and `Unreachable` if the server gives no answer.
        """
        server = self.require_server()
        with file_lock(self._store.database.path):
            return self._run(server)

    def _run(self, server: Server) -> SyncResult:
        before = msgspec.structs.replace(server.traffic)
        synchroniser = self._synchroniser(server)
        problem: dict[str, str] | None = None
        try:
            result = synchroniser.run()
            self._learn_limits(server)
            return result
        except Exception as exc:
            problem = _problem_of(exc)
            raise
        finally:
            self.progress = None
            result = synchroniser.result
            self.has_progressed = bool(result.pushed or result.pulled or result.changed)
            self._save_outcome(problem, server.traffic.since(before))
            # Also after a failure, because earlier answers were applied.
            self._notify(result)

    def _learn_limits(self, server: Server) -> None:
        """Reads the limits of the service, at most once a day. A failure leaves the known limits,
        because the sync itself has succeeded.
        """
        limits, now_ms = self._store.limits, self._store.now_ms()
        if limits.is_due(now_ms):
            document = None
            with suppress(ClientError):
                document = server.limits()
            limits.learn(document, now_ms)

    def _synchroniser(self, server: Server) -> Synchroniser:
        return Synchroniser(self._store, server, self._pace, self._batch, self._report)

    def _bytes_passed(self) -> int:
        traffic = self.require_server().traffic
        return traffic.bytes_sent + traffic.bytes_received

    def _save_outcome(self, problem: dict[str, str] | None, traffic: dict[str, int]) -> None:
        """Writes the problem and the traffic of a sync to the file. If the file cannot be written,
        for example because the disk is full, keeps the problem in memory for `Replica.status`.
        """
        self._unsaved_problem = problem
        with suppress(FileUnusable):
            self._store.meta.set(problem=problem, tried_at=self._store.now_ms())
            self._store.meta.add(**traffic)
            self.save_stream_traffic()
            self._unsaved_problem = None

    @property
    def problem(self) -> dict[str, str] | None:
        """The `code` and `detail` of the problem of the last sync; `None` if it succeeded."""
        saved: dict[str, str] | None = self._store.meta.get("problem")
        return self._unsaved_problem or saved

    def connect(self) -> Stream:
        """Returns a stream of the live channel that begins at the cursor of this replica."""
        meta, server = self._store.meta, self.require_server()
        server.page_bytes = self._pace.page_bytes
        return server.follow(meta.device, meta.after, meta.mark)

    def apply_page(self, page: Page) -> PageResult:
        """Applies the events of a page from the live channel to the local store, and calls the
        app's callbacks for the changes.

        Raises `FileLockTaken` if another process is syncing this file.
        """
        with file_lock(self._store.database.path):
            synchroniser = self._synchroniser(self.require_server())
            try:
                return synchroniser.apply_page(page)
            finally:
                self._notify(synchroniser.result)

    @property
    def backoff_seconds(self) -> float:
        return 0.0 if self.server is None else self.server.backoff_seconds

    @property
    def traffic(self) -> dict[str, int]:
        """A dict of the traffic counts since the replica was created: the number of requests, and
        the bytes of their bodies, sent and received. The keys are the attribute names of `Traffic`.
        """
        unsaved = self.server.streamed.since(self._saved) if self.server is not None else {}
        return {
            name: self._store.meta.get(name, 0) + unsaved.get(name, 0)
            for name in Traffic.__struct_fields__
        }

    def save_stream_traffic(self) -> None:
        """Writes the traffic counts of the live channel (requests and bytes) to the replica's
        file.

        Called only after a sync and when syncing stops, because each write waits for the
        disk.
        """
        if self.server is not None:
            streamed = msgspec.structs.replace(self.server.streamed)
            unsaved = streamed.since(self._saved)
            if any(unsaved.values()):
                self._store.meta.add(**unsaved)
                self._saved = streamed

    def _report(self, done: int, total: int) -> None:
        self.progress = done, total
        self._callbacks.notify_progress(done, total)

    def _notify(self, result: SyncResult) -> None:
        for key in dict.fromkeys(result.changed):
            self._callbacks.notify_change(Change(*key, self._store.records.find(key)))
        for id in dict.fromkeys(result.refused):
            queued = self._store.queue.find(id)
            if queued is not None:
                self._callbacks.notify_refusal(refusal_of(queued))
        for conflict in result.conflicts:
            own = self._store.meta.own_devices
            self._callbacks.notify_loss(Loss.from_conflict(conflict, own))


def _problem_of(exc: Exception) -> dict[str, str]:
    """Returns what `Status.problem` says about an error. The text of an error that is not of this
    library is left out, because it may contain anything.
    """
    if isinstance(exc, ServerProblem):
        return {"code": exc.problem, "detail": str(exc)}
    if isinstance(exc, ConnectionBroke):
        return {"code": Unreachable.code, "detail": str(exc)}  # apps know this code
    if isinstance(exc, ClientError):
        return {"code": exc.code, "detail": str(exc)}
    return {"code": ClientError.code, "detail": f"syncing failed with {type(exc).__name__}"}
