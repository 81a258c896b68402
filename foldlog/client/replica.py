"""A replica: the data of an app on this device, offline first."""

from __future__ import annotations

import secrets
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Literal

import msgspec

from foldlog.domain.names import is_collection, time_ordered_id

from .callbacks import Callbacks, Loss, Refusal, refusal_of
from .collection import Collection
from .status import Status
from .store.database import Database
from .store.local_store import LocalStore
from .store.meta import Meta
from .store.queue import Queued
from .sync.background import BackgroundSync
from .sync.file_lock import FileLockTaken
from .sync.live import LiveChannel
from .sync.results import PageResult, SyncResult
from .sync.runner import SyncRunner
from .transport.server import HttpServer, Server, Token
from .transport.stream import Page


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _new_id() -> str:
    return time_ordered_id(_now_ms(), secrets.randbits(74))


class Replica:
    """The records of one space on this device. `foldlog.open` returns it.

    Reading and writing use the local file alone, and never wait for the network. Several threads
    and several processes may use the same file. A replica is a context manager that closes itself.

    Attributes:
        space: The name of the space.
        callbacks: The callbacks of the app (see `Callbacks`).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        space: str | None,
        server: Server | None = None,
        now_ms: Callable[[], int] = _now_ms,
        new_id: Callable[[], str] = _new_id,
        keep_syncing: bool = False,
        live: bool = True,
    ):
        self.callbacks = Callbacks()
        self._store = LocalStore(
            path,
            space,
            now_ms=now_ms,
            new_id=new_id,
            on_queued=lambda: self._background.wake(),
        )
        self.space = self._store.space
        self._runner = SyncRunner(self._store, server, self.callbacks)
        woken = Event()
        channel = LiveChannel(
            self._store.database.path, self._runner.connect, self._apply_page, woken
        )
        self._background = BackgroundSync(
            self._runner.run,
            lambda: self._runner.backoff_seconds,
            time.monotonic,
            woken,
            channel if live else None,
        )
        if keep_syncing and server is not None:
            self._background.start()

    def __enter__(self) -> Replica:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops syncing and closes the file. Unsent changesets stay in the file."""
        self.stop()
        if self._runner.server is not None:
            self._runner.server.close()
        self._store.close()

    @property
    def device(self) -> str:
        """The id of this device in its space.

        The id changes if the device was restored from an older copy, or cloned.
        """
        return self._store.meta.device

    @property
    def notices(self) -> Callbacks:
        """The old name of `callbacks`. Deprecated, and removed in the next release."""
        warnings.warn(
            "Replica.notices was renamed: use Replica.callbacks", DeprecationWarning, stacklevel=2
        )
        return self.callbacks

    def collection(self, name: str) -> Collection:
        """Returns a collection, which exists as soon as it has a record.

        `name` has 1 to 64 of the characters A-Z, a-z, 0-9, `-`, `_` and `.`. Raises `ValueError`
        for other names.
        """
        if not is_collection(name):
            raise ValueError("a collection's name must be 1-64 of A-Z a-z 0-9 - _ .")
        return Collection(self._store, name)

    def changeset(
        self, *, guard: Literal["unchanged"] | None = None
    ) -> AbstractContextManager[None]:
        """Returns a context manager that makes all changes of its block one changeset.

        The changes are stored together or refused together. If the block raises, all of them are
        undone. A block inside a block belongs to the outer changeset.

            with replica.changeset(guard="unchanged"):
                tasks.update(milk.id, done=True)
                tasks.delete(bread.id)

        With `guard="unchanged"` the server refuses the changeset if another device has changed one
        of its records and this device has not pulled that change. See `refused`.
        """
        return self._store.changeset(guard=guard)

    def sync(self) -> SyncResult:
        """Pushes and pulls until both sides have everything.

        Returns the counts of the work done: `pushed` changesets and `pulled` events. If another
        thread or process is syncing this file, returns at once with all counts 0.

        Raises `ServerProblem` or `Unreachable`. The queue is unchanged then, and a later call
        continues. Raises `ClientError` if the replica was opened without a server.
        """
        try:
            return self._runner.run()
        except FileLockTaken:
            return SyncResult()

    def _apply_page(self, page: Page) -> PageResult:
        """Applies a page of the live channel. Raises `FileLockTaken`."""
        result = self._runner.apply_page(page)
        if self._store.queue.count("waiting"):
            self._background.wake()  # a sync may have failed while this thread held the file lock
        return result

    def start(self) -> None:
        """Starts syncing in the background.

        Raises `ClientError` if the replica was opened without a server.
        """
        self._runner.require_server()
        self._background.start()

    def stop(self) -> None:
        """Stops syncing in the background, and waits until a running sync has ended."""
        self._background.stop()
        with suppress(sqlite3.Error):  # a full disk must not prevent the end
            self._runner.save_stream_traffic()

    def status(self) -> Status:
        """Returns the sync status: unsent and refused changesets, progress, and problems."""
        meta, queue = self._store.meta, self._store.queue
        return Status(
            device=self.device,
            space=self.space,
            unsent=queue.count("waiting"),
            unacknowledged=queue.count("stored"),
            refused=self.refused(),
            after=meta.after,
            head=meta.get("head", 0),
            last_sync_ms=meta.get("synced_at"),
            problem=meta.get("problem"),
            is_syncing=self._background.is_running,
            live=self._background.is_live,
            next_try_seconds=self._background.next_try_seconds,
            snapshot_progress=self._runner.progress,
            **self._runner.traffic,
        )

    def refused(self) -> list[Refusal]:
        """Returns the changesets that the server has refused or rejected, oldest first.

        They change no record, and wait for `repair` or `drop`.
        """
        return [refusal_of(queued) for queued in self._store.queue.select("refused", "rejected")]

    def repair(self, id: str) -> AbstractContextManager[list[dict[str, Any]]]:
        """Returns a context manager whose block replaces a refused changeset with a new one.

        The block gets the old operations as JSON objects. All changes of the block are one
        changeset. If the block raises, the refused changeset stays.

            for refusal in replica.refused():
                with replica.repair(refusal.id) as operations:
                    for op in operations:
                        tasks.update(op["id"], op["fields"])

        `id` is that of the `Refusal`. Raises `LookupError` if there is none.
        """
        return self._repairing(id)

    @contextmanager
    def _repairing(self, id: str) -> Iterator[list[dict[str, Any]]]:
        with self._store.changeset():
            operations = refusal_of(self._find_refused(id)).operations
            yield operations
            self._store.queue.remove(id)

    def drop(self, id: str) -> None:
        """Deletes a refused changeset on this device.

        The server's log keeps a changeset that a guard or a schema has refused. Raises
        `LookupError` if `id` is not that of a `Refusal`.
        """
        with self._store.database.transaction():
            self._find_refused(id)
            self._store.queue.remove(id)

    def _find_refused(self, id: str) -> Queued:
        queued = self._store.queue.find(id)
        if queued is None or queued.state not in ("refused", "rejected"):
            raise LookupError(f"no refused changeset has the id {id}")
        return queued

    def conflicts(self, *, after: int = 0) -> list[Loss]:
        """Returns the conflicts in which this device wrote one of the two values, oldest first.

        `after` is the `number` of the last `Loss` that the app has read.
        """
        own = self._store.meta.own_devices
        rows = self._store.conflicts.select_after(after)
        return [Loss.from_json(number, document, own) for number, document in rows]

    def unsent(self) -> list[dict[str, Any]]:
        """Returns all changesets that are unsent, refused or rejected, as JSON objects.

        An app can save them elsewhere before it deletes the file.
        """
        queued = self._store.queue.select("waiting", "refused", "rejected")
        return [
            {
                "state": one.state,
                "device": self.device,
                **msgspec.to_builtins(one.to_wire()),
                **({} if one.why is None else {"why": one.why}),
            }
            for one in queued
        ]

    def purge_temporary(self) -> int:
        """Deletes all temporary records, and returns their number."""
        return self._store.records.purge_temporary()


def open(
    path: str | Path,
    *,
    space: str | None = None,
    server: str | Server | None = None,
    token: Token = None,
    keep_syncing: bool = True,
    live: bool = True,
) -> Replica:
    """Opens the replica in the file `path`. A missing file is created.

        with foldlog.open("app.db", server="http://localhost:3653", space="home") as replica:
            tasks = replica.collection("tasks")
            milk = tasks.create(title="Buy milk", done=False)
            tasks.update(milk.id, done=True)

    Arguments:
        path: The path of the SQLite file.
        space: The name of the space. The file remembers it, so only the first call needs it.
        server: The URL of a Foldlog service. The file remembers it. A replica without a server
            works, and queues its changesets.
        token: The access token, or a function that returns the current token before each request.
            Each call needs it, because the file stays free of secrets.
        keep_syncing: Whether a background thread syncs while the replica is open. Otherwise call
            `Replica.sync` or `Replica.start`.
        live: Whether the background thread opens the live channel, which delivers events at once.
            Otherwise the thread polls every 1 to 60 seconds.

    Raises `WrongReplica` if the file is something else than a replica, or belongs to another space.
    """
    with closing(Database(path)) as database:
        meta = Meta(database)
        space = space or meta.get("space")
        if isinstance(server, str):
            meta.set(server=server)
        url = server or meta.get("server")
    if isinstance(url, str):
        url = HttpServer(url, space or "", token=token)
    return Replica(path, space=space, server=url, keep_syncing=keep_syncing, live=live)
