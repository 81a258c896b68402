"""A device: a real replica on a real file, the app that uses it, and the accidents of both."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from foldlog.api.operations.events import range_answer
from foldlog.client.callbacks import Change, Loss, Refusal
from foldlog.client.collection import Collection
from foldlog.client.errors import (
    BadArgument,
    RecordExists,
    RecordNotFound,
    ServerProblem,
    Unreachable,
)
from foldlog.client.record import Record
from foldlog.client.replica import Replica
from foldlog.client.sync.results import PageResult, SyncResult
from foldlog.client.transport.stream import Page
from foldlog.domain.errors import FoldlogError
from foldlog.domain.merge import Key
from foldlog.domain.ports import RangeQuery

if TYPE_CHECKING:
    from .world import World

SPACE = "home"
COLLECTIONS = ("tasks", "stats")
YEAR_MS = 365 * 24 * 3_600_000
Looks = tuple[Any, bool]


class Killed(BaseException):
    """The process was killed. Its later writes do not reach the file."""


class Device:
    def __init__(self, world: World, name: str, path: Path):
        self.world = world
        self.name = name
        self.path = path
        self.is_online = True
        self.clock_off = 0
        self.is_dead = False
        self.fuse: int | None = None  #: transactions until it is killed
        #: ids of changesets with the verdict `stored`
        self.acknowledged: set[str] = set()
        #: ids of all changesets that were ever queued, without those that the app dropped
        self.made: set[str] = set()
        self.replica: Replica
        self.open()

    # The process.

    def open(self) -> None:
        self.is_dead, self.fuse = False, None
        self.replica = Replica(
            self.path,
            space=SPACE,
            server=self.world.wire(self),
            now_ms=lambda: self.world.now + self.clock_off,
            new_id=self.world.new_id,
        )
        self._make_mortal()
        self._reported_refusals: list[str] = []
        self._reported_losses: list[Loss] = []
        self._losses_before = max(
            (loss.number or 0 for loss in self.replica.conflicts()), default=0
        )
        self._refused_before = {refusal.id for refusal in self.replica.refused()}
        self._in_memory = self.shown()
        self._skew: int | None = None
        self.replica.callbacks.on_change(self._note_change)
        self.replica.callbacks.on_refusal(self._note_refusal)
        self.replica.callbacks.on_loss(self._note_loss)
        self.note_made()

    def reopen(self) -> None:
        self.replica._store.database.close()
        self.open()

    def _make_mortal(self) -> None:
        database = self.replica._store.database
        transaction = database.transaction

        @contextmanager
        def mortal() -> Iterator[sqlite3.Connection]:
            if self.is_dead:
                raise Killed
            with transaction() as connection:
                yield connection
                self._burn()  # before the commit
            self._burn()  # after it

        database.transaction = mortal  # type: ignore[method-assign]

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.die()

    def die(self) -> NoReturn:
        self.is_dead = True
        raise Killed

    @contextmanager
    def living(self) -> Iterator[None]:
        """A block in which the device may be killed. Then it is opened again."""
        try:
            yield
        except Killed:
            self.reopen()
        self.fuse = None
        self.note_made()
        self.check()

    # The app.

    def sync(self) -> SyncResult | None:
        """Syncs, and ignores the failures that the simulation causes."""
        outcome = None
        with self.living(), suppress(Unreachable):
            try:
                outcome = self.replica.sync()
            except ServerProblem as exc:
                if exc.problem not in ("storage-unavailable", "outcome-unknown", "unauthorized"):
                    raise
        return outcome

    def next_page(self) -> Page | None:
        """Returns the next page of the live channel."""
        meta = self.replica._store.meta
        query = RangeQuery(
            meta.get("after", 0),
            self.world.rng.choice([1, 2, 500]),
            meta.get("mark") or None,
            short_for_device=self.replica.device,
        )
        try:
            found = self.world.store.range_after(SPACE, query)
        except FoldlogError:
            return None
        answer = msgspec.json.decode(msgspec.json.encode(range_answer(found)))
        return Page(self.replica.device, query.after, query.mark or "", answer)

    def take(self, page: Page) -> None:
        fit = None
        with self.living():
            if self.world.may(0.05):
                self.fuse = self.world.rng.randint(1, 3)
            fit = self.replica._apply_page(page)
        if fit is PageResult.NEEDS_SYNC:
            self.sync()

    def edit(self) -> None:
        world = self.world
        guard = "unchanged" if world.may(0.2) else None
        with self.living():
            if world.may(0.03):
                self.fuse = world.rng.randint(1, 8)
            with self.replica.changeset(guard=guard):
                for _ in range(world.rng.choice([1, 1, 1, 2, 3, 5])):
                    edit = world.draw(EDITS)
                    collection = self.replica.collection(world.rng.choice(COLLECTIONS))
                    with suppress(RecordNotFound, RecordExists, BadArgument):
                        edit(self, collection, world.rng.choice(world.ids))
        self._in_memory = self.shown()

    def _create(self, tasks: Collection, id: str) -> None:
        tasks.create(self._fields(), id=id)

    def _put(self, tasks: Collection, id: str) -> None:
        tasks.put(id, self._fields())

    def _update(self, tasks: Collection, id: str) -> None:
        tasks.update(id, self._fields())

    def _unset(self, tasks: Collection, id: str) -> None:
        tasks.update(id, unset=[self.world.rng.choice(self.world.names)])

    def _increment(self, tasks: Collection, id: str) -> None:
        amount = self.world.rng.choice([1, -1, 2, 0.1, 1e308])
        tasks.increment(id, **{self.world.rng.choice(self.world.names): amount})

    def _delete(self, tasks: Collection, id: str) -> None:
        tasks.delete(id)

    def _too_deep(self, tasks: Collection, id: str) -> None:
        tasks.put(id, {"deep": [[[[[[1]]]]]]})  # within the client's limits, over the server's

    def _too_long(self, tasks: Collection, id: str) -> None:
        tasks.put(id, {"long": "x" * self.world.limits.event_bytes_max})

    def _too_long_a_name(self, tasks: Collection, id: str) -> None:
        tasks.put(id, {"n" * (self.world.limits.field_name_length_max + 1): 1})

    def _fields(self) -> dict[str, Any]:
        rng = self.world.rng
        names = rng.choices(self.world.names, k=rng.choice([0, 1, 1, 1, 2]))
        return {name: rng.choice(VALUES) for name in names}

    def mend(self) -> None:
        """The app repairs or drops refused changesets."""
        for refusal in self.replica.refused():
            with self.living():
                if self.world.may(0.5):
                    with self.replica.repair(refusal.id) as operations:
                        for op in operations:
                            collection = self.replica.collection(op["collection"])
                            collection.put(op["id"], {"mended": op["op"]})
                else:
                    self.replica.drop(refusal.id)
                self.made.discard(refusal.id)
        self._in_memory = self.shown()

    def keep_temporary(self) -> None:
        tasks = self.replica.collection("tasks")
        with self.living():
            found = tasks.create_temporary({"a": 1})
            tasks.update(found.id, b=2)
            if self.world.may(0.5):
                tasks.keep(found.id)
            else:
                self.replica.purge_temporary()
        self._in_memory = self.shown()

    def jump(self) -> None:
        self.clock_off = self.world.rng.randint(-YEAR_MS, YEAR_MS)

    # The file.

    def copy_to(self, path: Path) -> None:
        """Makes a backup that includes the write-ahead log."""
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(path)) as to:
            source.backup(to)

    def put_back(self, path: Path) -> None:
        """Restores a backup in place of the file."""
        self.replica._store.database.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.path.write_bytes(path.read_bytes())
        self.open()

    # The callbacks agree with the store.

    def _note_change(self, change: Change) -> None:
        key = change.collection, change.id
        if change.record is None:
            self._in_memory.pop(key, None)
        else:
            self._in_memory[key] = looks_of(change.record)

    def _note_refusal(self, refusal: Refusal) -> None:
        self._reported_refusals.append(refusal.id)

    def _note_loss(self, loss: Loss) -> None:
        self._reported_losses.append(loss)

    def shown(self) -> dict[Key, Looks]:
        return {(r.collection, r.id): looks_of(r) for r in self.records()}

    def records(self) -> list[Record]:
        return [
            record
            for collection in COLLECTIONS
            for record in self.replica.collection(collection).query(deleted=True)
        ]

    def note_made(self) -> None:
        rows = self.replica._store.database.connection.execute("SELECT id FROM queue")
        self.made |= {id for (id,) in rows}

    def check(self) -> None:
        """Checks an invariant: the shown records are the confirmed ones with the queue on top."""
        if self.is_loading:
            return
        shown, skew = self._rows(), self.replica._store.meta.get("skew")
        self.replica._store.view.refresh(list(shown))
        if skew == self._skew:
            assert self._rows() == shown, f"{self.name} shows a stale record"
        else:
            # A new estimate of the clock predicts other winners of ties, without callbacks.
            self._skew = skew
            self._in_memory = self.shown()

    def check_callbacks(self) -> None:
        assert self._in_memory == self.shown(), f"{self.name} got no callback for a change"
        kept = [loss_as_text(loss) for loss in self.replica.conflicts(after=self._losses_before)]
        told = [
            loss_as_text(loss)
            for loss in self._reported_losses
            # Erased conflicts are reported before their erasure.
            if not self.world.was_erased((loss.collection, loss.id), loss.seq)
            or loss_as_text(loss) in kept
        ]
        assert told == kept, f"{self.name} got no callback for its losses"
        assert len(self._reported_refusals) == len(set(self._reported_refusals))
        refused = {refusal.id for refusal in self.replica.refused()}
        assert refused <= self._refused_before | set(self._reported_refusals)

    @property
    def is_loading(self) -> bool:
        return self.replica._store.meta.get("snapshot") is not None

    def _rows(self) -> dict[Key, Any]:
        rows = self.replica._store.database.connection.execute(
            "SELECT collection, id, fields, is_deleted, is_there, sync_status, last_modified, seq "
            "FROM records WHERE sync_status <> 2"
        )
        return {(collection, id): rest for collection, id, *rest in rows}


def looks_of(record: Record) -> Looks:
    return record.fields, record.is_deleted


def loss_as_text(loss: Loss) -> tuple[Any, ...]:
    return loss.seq, loss.collection, loss.id, loss.field, loss.rule, repr(loss.lost)


VALUES: list[Any] = [0, 1, 2, 0.5, -3, 1e308, "milk", "bread", "", None, True, [1, "a"], {"n": 1}]

#: the edits of the app, with their frequencies
EDITS: dict[Callable[[Device, Collection, str], None], int] = {
    Device._create: 10,
    Device._put: 20,
    Device._update: 25,
    Device._unset: 8,
    Device._increment: 20,
    Device._delete: 10,
    Device._too_deep: 1,
    Device._too_long: 1,
    Device._too_long_a_name: 1,
}
