"""Defines `Replica`, an app's copy of a space in a local file, and `open`, which opens this
file.
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from foldlog.domain.names import is_collection, time_ordered_id

from .callbacks import Callbacks, Loss, Refusal, refusal_of
from .collection import Collection
from .errors import BadArgument, FileUnusable, ReplicaClosed
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
from .transport.enrolment import SUFFIX, DeviceToken, SecretFile, Secrets
from .transport.server import HttpServer, Server
from .transport.sign_in import SignIn, Token
from .transport.stream import Page


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _new_id() -> str:
    return time_ordered_id(_now_ms(), secrets.randbits(74))


class Replica:
    """An app's copy of a space, in a local file. `foldlog.open` returns a replica.

    Reading and writing use only the local file and never wait for the network. Several threads
    and several processes may use the same file. A replica can be used in a `with`
    statement, which closes the replica when the block ends.

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
            lambda: self._runner.has_progressed,
            lambda: server is not None and server.has_new_token,
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
        """Stops syncing and closes the file. Changesets that are not sent yet stay in the
        file.
        """
        self.stop()
        if self._runner.server is not None:
            self._runner.server.close()
        self._store.close()

    @property
    def device(self) -> str:
        """The id of this device in the space of the replica, a UUID as text.

        The replica takes a new id when it finds that another copy of its file uses the old
        id. This happens if the file was copied to another device, or was restored from an
        older copy.
        """
        return self._store.meta.device

    @property
    def notices(self) -> Callbacks:
        """The old name of `callbacks`. This name is deprecated, and the next release
        removes it.
        """
        warnings.warn(
            "Replica.notices was renamed: use Replica.callbacks", DeprecationWarning, stacklevel=2
        )
        return self.callbacks

    def collection(self, name: str) -> Collection:
        """Returns the collection with this name. The collection does not have to be created
        first.

        `name` has 1 to 64 of the characters A-Z, a-z, 0-9, `-`, `_` and `.`. Raises
        `BadArgument`, a `ValueError`, for other names.
        """
        if not isinstance(name, str) or not is_collection(name):
            raise BadArgument("a collection's name must be 1-64 of A-Z a-z 0-9 - _ .")
        return Collection(self._store, name)

    def changeset(
        self, *, guard: Literal["unchanged"] | None = None
    ) -> AbstractContextManager[None]:
        """Returns a context manager that puts all changes of its `with` block into one changeset.

        The server stores all changes of a changeset or refuses all of them. If the block raises an
        exception, all of its changes are undone. If blocks are nested, all changes belong to the
        changeset of the outer block.

            with replica.changeset(guard="unchanged"):
                tasks.update(milk.id, done=True)
                tasks.delete(bread.id)

        With `guard="unchanged"`, the server refuses the changeset if another device has changed one
        of the same records after the last event that this device had pulled when the block began.
        `Replica.refused` then lists the changeset. Raises `BadArgument` for another `guard`.
        """
        if guard not in (None, "unchanged"):
            raise BadArgument(f"guard must be 'unchanged' or None, not {guard!r}")
        return self._store.changeset(guard=guard)

    def sync(self) -> SyncResult:
        """Sends all queued changesets and receives all new events, then returns a
        `SyncResult`.

        The result contains, for example, the number of changesets sent (`pushed`) and the
        number of events received (`pulled`). If another thread or process is syncing this file, the
        method returns at once with an empty result.

        Raises `ServerProblem` if the server answers with an error, `Unreachable` if the server
        gives no answer, and `NotFoldlog` if another server answers. Changesets that the server has
        not confirmed stay in the queue, and a later call sends them again. Raises `BadToken` if the
        token function failed, and `ClientError` if the replica was opened without a server.

        If a connection breaks, the method goes on where it broke, with smaller requests, as long as
        answers arrive.
        """
        try:
            result = self._runner.run()
        except FileLockTaken:
            return SyncResult()
        if self._background.is_failing:
            self._background.retry()  # the server is reachable again
        return result

    def use_token(self, token: Token) -> None:
        """Uses another access token from now on, and lets the background thread try at once.

        `token` is a text, or a function that returns the current token before each request. Call
        this method after a new sign-in. If the replica has a token function, the library notices
        another token by itself, within some seconds.

        Raises `BadToken` if the token has a character that a header cannot carry, and `ClientError`
        if the replica was opened without a server.
        """
        self._runner.require_server().use_token(token)
        self._background.retry()

    def retry(self) -> None:
        """Lets the background thread sync now, instead of after the wait that follows a failure.

        Call this method when the app knows more than the library, for example that the device is
        online again.
        """
        self._background.retry()

    def _apply_page(self, page: Page) -> PageResult:
        """Applies the events of a page from the live channel to the records in the file of the
        replica. Raises `FileLockTaken` if another process is syncing this file.
        """
        result = self._runner.apply_page(page)
        if self._store.queue.count("waiting"):
            self._background.wake()  # a sync may have failed while this thread held the file lock
        return result

    def start(self) -> None:
        """Starts a background thread that syncs until `stop` or `close` is called.

        Raises `ClientError` if the replica was opened without a server.
        """
        self._runner.require_server()
        self._background.start()

    def stop(self) -> None:
        """Stops the background thread. If the thread is in the middle of a sync, waits until
        this sync has ended.
        """
        self._background.stop()
        with suppress(FileUnusable, ReplicaClosed):  # a full disk must not prevent the end
            self._runner.save_stream_traffic()

    def status(self) -> Status:
        """Returns a `Status` object, which has, for example, the number of unsent changesets and
        the problem of the last sync.
        """
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
            problem=self._runner.problem,
            is_syncing=self._background.is_running,
            live=self._background.is_live,
            next_try_seconds=self._background.next_try_seconds,
            snapshot_progress=self._runner.progress,
            **self._runner.traffic,
        )

    def refused(self) -> list[Refusal]:
        """Returns a list of `Refusal` objects: one for each changeset that the server has refused
        (a guard or a schema failed) or rejected (malformed or over a limit), oldest first.

        These changesets change no record. A changeset stays in the file until the app calls
        `repair` or `drop` with its id.
        """
        return [refusal_of(queued) for queued in self._store.queue.select("refused", "rejected")]

    def repair(self, id: str) -> AbstractContextManager[list[dict[str, Any]]]:
        """Returns a context manager that replaces a changeset that the server did not accept with
        a new one. `id` is the id of a `Refusal`.

        The `with` block gets the operations of the old changeset as a list of JSON objects. All
        changes that the block makes become one new changeset. At the end of the block, the old
        changeset is deleted. If the block raises an exception, the old changeset stays.

            for refusal in replica.refused():
                with replica.repair(refusal.id) as operations:
                    for op in operations:
                        tasks.update(op["id"], op["fields"])

        Raises `LookupError` if this device has no such changeset.
        """
        return self._repairing(id)

    @contextmanager
    def _repairing(self, id: str) -> Iterator[list[dict[str, Any]]]:
        with self._store.changeset():
            operations = refusal_of(self._find_refused(id)).operations
            yield operations
            self._store.queue.remove(id)

    def drop(self, id: str) -> None:
        """Deletes a changeset that the server did not accept from the file of this device. `id` is
        the id of a `Refusal`.

        The method leaves the server's log as it is. The log contains changesets with the state
        "refused", but no changesets with the state "rejected" (see `Refusal.state`). Raises
        `LookupError` if this device has no such changeset.
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
        """Returns a list of `Loss` objects: one for each conflict in which this device wrote one of
        the two values, oldest first.

        `after` is the `number` of the last `Loss` that the app has handled. Only conflicts with a
        greater number are returned; 0, the default, means all.
        """
        own = self._store.meta.own_devices
        rows = self._store.conflicts.select_after(after)
        return [Loss.from_json(number, document, own) for number, document in rows]

    def unsent(self) -> list[dict[str, Any]]:
        """Returns a list of JSON objects: one for each changeset that is still to be sent, or that
        the server did not accept.

        The member `state` of each object is "waiting", "refused" or "rejected". A waiting changeset
        is still to be sent; `Refusal.state` describes the two other states. An app can save the
        objects in another place before it deletes the file of the replica.
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
        """Deletes all temporary records, and returns the number of deleted records."""
        return self._store.records.purge_temporary()


def open(
    path: str | Path,
    *,
    space: str | None = None,
    server: str | Server | None = None,
    token: Token = None,
    enrol: str | None = None,
    secrets: Secrets | None = None,
    keep_syncing: bool = True,
    live: bool = True,
) -> Replica:
    """Opens the replica in the file `path`, and creates the file if it is missing.

        with foldlog.open("app.db", server="http://localhost:3653", space="home") as replica:
            tasks = replica.collection("tasks")
            milk = tasks.create(title="Buy milk", done=False)
            tasks.update(milk.id, done=True)

    Arguments:
        path: The path of the SQLite file. Its folder must exist.
        space: The name of the space. It is saved in the file, so only the first call needs it.
        server: The URL of a Foldlog service, with `https://` or `http://`, which is also saved in
            the file. A replica without a server works, and queues its changesets.
        token: The access token, or a function that returns the current token before each request.
            The token is not saved in the file, so each call needs it.
        enrol: A one-time code, from `foldlog enrol`, in place of a token. At its first sync the
            device makes a token by itself and saves it in the file `path` + `.token`, which only
            the owner can read. Later calls use this token without the code.
        secrets: Keeps the token in another place than this file (see `Secrets`).
        keep_syncing: Whether a background thread syncs while the replica is open. If not, the app
            calls `Replica.sync` or `Replica.start`.
        live: Whether the background thread opens the live channel, on which the service sends new
            events at once. If `False`, the thread polls every 1 to 60 seconds.

    Raises `WrongReplica` if the file is not a replica, if it belongs to another space, or if
    `space` is missing for a new file. Raises `FileUnusable` if the file cannot be opened or
    written, `BadArgument` if `server` is no URL, `enrol` no code, or `path` names no file, and if
    both a token and an enrolment are given. Raises `BadToken` if the token has a character that a
    header cannot carry. The file keeps its server after an error.
    """
    SignIn(token)  # before the file is made
    if (token or isinstance(server, Server)) and (enrol is not None or secrets is not None):
        raise BadArgument("enrol and secrets need the server's URL, and no token")
    kept = secrets or SecretFile(Path(f"{path}{SUFFIX}"))
    own = None if token else DeviceToken(kept, enrol)
    if isinstance(server, str):
        check_url(server)
    with closing(Database(path)) as database:
        meta = Meta(database)
        space = space or meta.get("space")
        url = server or meta.get("server")
    if isinstance(url, str):
        check_url(url)
        url = HttpServer(url, space or "", token=own or token)
    replica = Replica(path, space=space, server=url, live=live)
    if isinstance(server, str):
        replica._store.meta.set(server=server)
    if keep_syncing and url is not None:
        replica.start()
    return replica


def check_url(url: str) -> None:
    """Raises `BadArgument` if a text is not the URL of a service. The message has the cure."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        raise BadArgument("server is no URL: use one like 'https://sync.example.com'") from None
    if "@" in url:
        raise BadArgument("server has a user or a password: use the argument `token` instead")
    if not has_host and "://" not in url and url.strip():
        raise BadArgument(
            f"server={url!r} has no scheme: use 'https://{url}', or 'http://{url}' without TLS"
        )
    if not has_host or any(character.isspace() for character in url):
        raise BadArgument(f"server={url!r} is no URL: use one like 'https://sync.example.com'")
    if parts.query or parts.fragment:
        raise BadArgument("server has a `?` or a `#`: use the URL before it")
