"""A replica: an app's data on this device, offline first."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import Event, local
from types import TracebackType
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from foldlog.domain.changesets import Operation, check_operation
from foldlog.domain.errors import InvalidRequest
from foldlog.domain.limits import LIMITS
from foldlog.domain.merge import Key
from foldlog.domain.names import is_collection, is_record_id, is_space, time_ordered_id
from foldlog.domain.values import is_number, sum_of

from .background import Background
from .callbacks import Callbacks, Change, Loss, Refusal
from .collection import COLUMNS, TEMPORARY, Collection, Record, condition, json_path, record_of
from .database import Database, Meta
from .errors import ClientError, NotARecord, ServerProblem, Unreachable, WrongReplica
from .file_lock import FileLockTaken, file_lock
from .live import Live
from .queue import Queue, Queued
from .server import HttpServer, Server, Token
from .status import Status
from .stream import Page, Stream, Traffic
from .sync import Outcome, PageResult, Synchroniser
from .view import Making, View


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _new_id() -> str:
    return time_ordered_id(_now_ms(), secrets.randbits(74))


class Replica:
    """The records of one space on this device. Made by `foldlog.open`.

    Safe to use from several threads, and from several processes on one file: they take turns.
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
        self.notices = Callbacks()
        self._now_ms = now_ms
        self._new_id = new_id
        self._server = server
        self._database = Database(path)
        self._meta = Meta(self._database)
        self._queue = Queue(self._database, self._meta)
        self._view = View(self._database, self._meta, self._queue)
        self._own = local()  # the changeset that is being made in this thread
        self._progress: tuple[int, int] | None = None
        try:
            self.space = self._settle_in(space)
        except WrongReplica:
            self._database.close()
            raise
        self._counted = Traffic()  # of what was streamed, what is in the file
        woken = Event()
        self._background = Background(
            self._sync_in_turn,
            self._backoff_seconds,
            time.monotonic,
            woken,
            Live(self._database.path, self._follow, self._take, woken) if live else None,
        )
        if keep_syncing and server is not None:
            self._background.start()

    def _settle_in(self, space: str | None) -> str:
        """Finds which space this is a replica of, or makes it one."""
        with self._database.transaction():
            known: str | None = self._meta.get("space")
            wrong = None
            if known is None and (space is None or not is_space(space)):
                wrong = f"a new replica needs the name of a space, not {space!r}"
            elif known is not None and space not in (None, known):
                wrong = f"this file is a replica of {known!r}, not of {space!r}"
            if wrong:
                raise WrongReplica(wrong)
            if known is None:
                self._meta.set(space=space, device=self._new_id())
            return str(known or space)

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
        """Ends the syncing and closes the file. What is queued stays queued."""
        self.stop()
        if self._server is not None:
            self._server.close()
        self._database.close()

    @property
    def device(self) -> str:
        """The id of this device in its space. It changes when the device heals from a restore."""
        return str(self._meta.get("device"))

    def collection(self, name: str) -> Collection:
        """Raises `ValueError` for what cannot name a collection."""
        if not is_collection(name):
            raise ValueError("a collection's name must be 1-64 of A-Z a-z 0-9 - _ .")
        return Collection(self, name)

    @contextmanager
    def changeset(self, *, guard: Literal["unchanged"] | None = None) -> Iterator[None]:
        """All changes inside are one changeset: stored together, or refused together.

        If the block raises, none of them has happened. `guard="unchanged"` has the server refuse
        it if another device has changed one of its records meanwhile. Blocks inside a block are
        part of it.
        """
        if getattr(self._own, "is_making", False):
            yield
            return
        with self._database.transaction():
            self._own.is_making = True
            self._own.making = None
            self._own.guard = guard
            try:
                yield
            finally:
                self._own.is_making = False
            making: Making | None = self._own.making
            if making is not None:
                self._queue.append(making.queued)
        if making is not None:
            self._background.wake()

    def _apply(self, op: Operation) -> None:
        """Adds an operation to the changeset that is being made, and shows what it does."""
        op = _checked(op)
        with self.changeset():
            if self._own.making is None:
                # A changeset builds on what this device had seen when it was begun.
                base = self._meta.get("after", 0)
                self._own.making = Making(
                    self._queue.begin(self._new_id(), base, self._now_ms(), self._own.guard)
                )
            self._view.add(self._own.making, op)

    def sync(self) -> Outcome:
        """Pushes and pulls until nothing is left to do.

        Raises `ServerProblem` or `Unreachable`; nothing is lost then, and trying again is all
        there is to do. If another process of this file is syncing, it does the work, and this
        returns at once.
        """
        try:
            return self._sync_in_turn()
        except FileLockTaken:
            return Outcome()

    def _sync_in_turn(self) -> Outcome:
        server = self._needed_server()
        with file_lock(self._database.path):
            return self._sync(server)

    def _needed_server(self) -> Server:
        if self._server is None:
            raise ClientError("this replica was opened without a server")
        return self._server

    def _synchroniser(self) -> Synchroniser:
        return Synchroniser(
            self._database,
            self._meta,
            self._queue,
            self._view,
            self._needed_server(),
            now_ms=self._now_ms,
            new_id=self._new_id,
            report=self._report,
        )

    def _sync(self, server: Server) -> Outcome:
        before = msgspec.structs.replace(server.traffic)
        synchroniser = self._synchroniser()
        problem: dict[str, Any] | None = None
        try:
            outcome = synchroniser.run()
        except (ServerProblem, Unreachable) as exc:
            code = exc.problem if isinstance(exc, ServerProblem) else exc.code
            problem = {"code": code, "detail": str(exc)}
            raise
        finally:
            self._progress = None
            self._meta.set(problem=problem, tried_at=self._now_ms())
            self._meta.add(**server.traffic.since(before))
            self._count_streamed()
            # What arrived before something went wrong has arrived.
            self._tell(synchroniser.outcome)
        return outcome

    def _follow(self) -> Stream:
        """The live channel from where this replica is."""
        meta = self._meta
        return self._needed_server().follow(self.device, meta.get("after", 0), meta.get("mark", ""))

    def _take(self, page: Page) -> PageResult:
        """Applies a page of the live channel as a sync would. Raises `FileLockTaken`."""
        with file_lock(self._database.path):
            synchroniser = self._synchroniser()
            try:
                fit = synchroniser.take(page)
            finally:
                self._tell(synchroniser.outcome)
        if self._queue.count("waiting"):
            self._background.wake()  # who wanted to send it meanwhile had found the turn taken
        return fit

    def _count_streamed(self) -> None:
        """Not at once: to write down each sign of life would be a flush of the disk each time."""
        if self._server is not None:
            streamed = msgspec.structs.replace(self._server.streamed)
            news = streamed.since(self._counted)
            if any(news.values()):
                self._meta.add(**news)
                self._counted = streamed

    def _report(self, done: int, total: int) -> None:
        self._progress = done, total
        self.notices.notify_progress(done, total)

    def _tell(self, outcome: Outcome) -> None:
        for key in dict.fromkeys(outcome.changed):
            self.notices.notify_change(Change(*key, self._find(key)))
        for id in dict.fromkeys(outcome.refused):
            queued = self._queue.find(id)
            if queued is not None:
                self.notices.notify_refusal(_refusal(queued))
        for conflict in outcome.conflicts:
            self.notices.notify_loss(Loss.of(conflict, self._own_devices()))

    def _backoff_seconds(self) -> float:
        return 0.0 if self._server is None else self._server.backoff_seconds

    def start(self) -> None:
        """Keeps syncing in the background from now on."""
        self._needed_server()
        self._background.start()

    def stop(self) -> None:
        """Ends the syncing in the background; what is under way is finished first."""
        self._background.stop()
        with suppress(sqlite3.Error):  # a full disk: no reason not to end
            self._count_streamed()

    def status(self) -> Status:
        """How it stands with syncing: what is unsent, what was refused, why nothing moves."""
        meta = self._meta
        streamed = self._server.streamed.since(self._counted) if self._server else {}
        return Status(
            device=self.device,
            space=self.space,
            unsent=self._queue.count("waiting"),
            unacknowledged=self._queue.count("stored"),
            refused=self.refused(),
            after=meta.get("after", 0),
            head=meta.get("head", 0),
            last_sync_ms=meta.get("synced_at"),
            problem=meta.get("problem"),
            is_syncing=self._background.is_running,
            live=self._background.is_live,
            next_try_seconds=self._background.next_try_seconds,
            snapshot_progress=self._progress,
            requests=meta.get("requests", 0) + streamed.get("requests", 0),
            bytes_sent=meta.get("bytes_sent", 0) + streamed.get("bytes_sent", 0),
            bytes_received=meta.get("bytes_received", 0) + streamed.get("bytes_received", 0),
        )

    def refused(self) -> list[Refusal]:
        """Changesets that the server refused, or could not read. They change no record.

        Each waits here until it is repaired or dropped.
        """
        return [_refusal(queued) for queued in self._queue.select("refused", "rejected")]

    def repair(self, id: str) -> AbstractContextManager[list[dict[str, Any]]]:
        """A block in which a refused changeset is made anew, as one new changeset.

        It gets the operations as they were; when the block ends well, the refused one is dropped.

            with replica.repair(refusal.id) as operations:
                tasks.update(operations[0]["id"], operations[0]["fields"])
        """
        return self._repairing(id)

    @contextmanager
    def _repairing(self, id: str) -> Iterator[list[dict[str, Any]]]:
        with self.changeset():
            operations = _refusal(self._refused_one(id)).operations
            yield operations
            self._queue.remove(id)

    def drop(self, id: str) -> None:
        """Gives a refused changeset up. In the log it stays, if a guard refused it there."""
        with self._database.transaction():
            self._refused_one(id)
            self._queue.remove(id)

    def _refused_one(self, id: str) -> Queued:
        queued = self._queue.find(id)
        if queued is None or queued.state not in ("refused", "rejected"):
            raise LookupError(f"no refused changeset has the id {id}")
        return queued

    def conflicts(self, *, after: int = 0) -> list[Loss]:
        """Values of this device that lost, and values that lost to it; `number` counts them."""
        rows = self._database.connection.execute(
            "SELECT number, document FROM conflicts WHERE number > ? ORDER BY number", (after,)
        )
        own = self._own_devices()
        return [Loss.read(number, document, own) for number, document in rows]

    def _own_devices(self) -> set[str]:
        """This device, and those that it was before it healed."""
        return {self.device, *self._meta.get("earlier_devices", [])}

    def unsent(self) -> list[dict[str, Any]]:
        """Every changeset that is not in the log or was refused, as JSON, to be saved elsewhere."""
        queued = self._queue.select("waiting", "refused", "rejected")
        return [
            {
                "state": one.state,
                "device": self.device,
                **msgspec.to_builtins(one.on_the_wire()),
                **({} if one.why is None else {"why": one.why}),
            }
            for one in queued
        ]

    def purge_temporary(self) -> int:
        """Removes temporary records, and returns how many those were."""
        with self._database.transaction() as db:
            return db.execute("DELETE FROM records WHERE sync_status = ?", (TEMPORARY,)).rowcount

    # What collections are made of.

    def _find(self, key: Key) -> Record | None:
        if not is_record_id(key[1]):
            return None
        row = self._database.connection.execute(
            f"SELECT {COLUMNS} FROM records WHERE collection = ? AND id = ? AND is_there", key
        ).fetchone()
        return None if row is None else record_of(row)

    def _count(self, collection: str) -> int:
        row = self._database.connection.execute(
            "SELECT count(*) FROM records WHERE collection = ? AND is_there AND NOT is_deleted",
            (collection,),
        ).fetchone()
        return int(row[0])

    def _query(
        self,
        collection: str,
        where: Mapping[str, Any],
        order_by: str | None,
        limit: int | None,
        offset: int,
        deleted: bool,
    ) -> list[Record]:
        conditions, parameters = ["collection = ?", "is_there"], [collection]
        if not deleted:
            conditions.append("NOT is_deleted")
        for name, value in where.items():
            sql, values = condition(name, value)
            conditions.append(sql)
            parameters += values
        order = "id"
        if order_by is not None:
            direction = "DESC" if order_by.startswith("-") else "ASC"
            order = f"json_extract(fields, ?) {direction}, id"
            parameters.append(json_path(order_by.removeprefix("-")))
        rows = self._database.connection.execute(
            f"SELECT {COLUMNS} FROM records WHERE {' AND '.join(conditions)} "
            f"ORDER BY {order} LIMIT ? OFFSET ?",
            (*parameters, -1 if limit is None else limit, offset),
        )
        return [record_of(row) for row in rows]

    def _put_temporary(self, key: Key, fields: dict[str, Any]) -> None:
        _checked(Operation("put", *key, fields=fields))
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO records (collection, id, fields, is_there, sync_status) "
                "VALUES (?, ?, ?, 1, ?) ON CONFLICT (collection, id) DO UPDATE "
                "SET fields = excluded.fields",
                (*key, msgspec.json.encode(fields).decode(), TEMPORARY),
            )

    def _change_temporary(self, record: Record, op: Operation) -> None:
        fields = dict(record.fields)
        for name, value in (op.fields or {}).items():
            if op.op == "add" and is_number(was := fields.get(name, 0)):
                value = sum_of(was, value)
            fields[name] = value
        for name in op.unset if op.unset is not UNSET else ():
            fields.pop(name, None)
        self._put_temporary((record.collection, record.id), fields)

    def _drop_temporary(self, key: Key) -> None:
        with self._database.transaction() as db:
            db.execute(
                "DELETE FROM records WHERE collection = ? AND id = ? AND sync_status = ?",
                (*key, TEMPORARY),
            )


def _checked(op: Operation) -> Operation:
    """The operation as it comes back from the server. Raises `NotARecord` if it never would."""
    try:
        check_operation(op, LIMITS)
        return msgspec.json.decode(msgspec.json.encode(op), type=Operation)
    except (InvalidRequest, UnicodeEncodeError, TypeError) as exc:
        raise NotARecord(str(exc)) from exc


def _refusal(queued: Queued) -> Refusal:
    why = queued.why or {}
    return Refusal(
        id=queued.id,
        state=queued.state,
        code=why.get("code", ""),
        detail=why.get("detail", ""),
        operations=[msgspec.to_builtins(op) for op in queued.ops],
    )


def open(
    path: str | Path,
    *,
    space: str | None = None,
    server: str | Server | None = None,
    token: Token = None,
    keep_syncing: bool = True,
    live: bool = True,
) -> Replica:
    """Opens the replica in the file `path`, which is made if there is none.

    `server` is the URL of a Foldlog service; without one the replica works, and queues. Space and
    URL are kept in the file and need not be given again. `token` is what the service asks for, or
    a function that gives the present one, if they expire; it is kept nowhere. With `keep_syncing` a
    thread of its own keeps the replica in sync for as long as it is open: at once if the service
    has a live channel, else, or without `live`, by asking now and then.

        with foldlog.open("app.db", server="http://localhost:3653", space="home") as replica:
            tasks = replica.collection("tasks")
            milk = tasks.create(title="Buy milk", done=False)
            tasks.update(milk.id, done=True)

    Raises `WrongReplica` if the file is none, or one of another space.
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
