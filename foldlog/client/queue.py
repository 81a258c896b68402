"""The queue: changesets that this device made and the cursor has not passed yet."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import Key
from foldlog.domain.times import format_time

from .database import Database, Meta
from .forgetting import to_send

#: waiting: to be sent. stored: acknowledged, and on its way back. refused: a guard did not hold.
#: rejected: the server cannot read it, or it is over a limit. The last two wait for the app.
State = Literal["waiting", "stored", "refused", "rejected"]

_COLUMNS = "position, id, counter, base, made_at, guard, ops, state, seq, why"
_decode_ops = msgspec.json.Decoder(list[Operation]).decode
#: A queued changeset is folded after every event that there will ever be.
_AFTER_ALL_SEQS = 2**52


class Queued(msgspec.Struct):
    """A changeset of the queue."""

    position: int
    id: str
    counter: int | None
    base: int
    made_at: int
    guard: str | None
    ops: list[Operation]
    state: State
    seq: int | None = None
    why: dict[str, str] | None = None

    def on_the_wire(self) -> dict[str, Any]:
        changeset: dict[str, Any] = {
            "id": self.id,
            "base": self.base,
            "made_at": format_time(self.made_at),
            "ops": [to_send(op) for op in self.ops],
        }
        if self.counter is not None:
            changeset["counter"] = self.counter
        if self.guard is not None:
            changeset["guard"] = self.guard
        return changeset

    def as_event(self, device: str, time: int) -> Event:
        """The event that it would be if it were stored now."""
        return Event(
            seq=_AFTER_ALL_SEQS + self.position,
            kind="changeset",
            id=self.id,
            received_at="",
            verdict="stored",
            device=device,
            base=self.base,
            time=time,
            ops=self.ops,
        )


def _queued(row: Sequence[Any]) -> Queued:
    position, id, counter, base, made_at, guard, ops, state, seq, why = row
    return Queued(
        position,
        id,
        counter,
        base,
        made_at,
        guard,
        _decode_ops(ops),
        state,
        seq,
        None if why is None else msgspec.json.decode(why),
    )


class Queue:
    def __init__(self, database: Database, meta: Meta):
        self._database = database
        self._meta = meta

    def begin(self, id: str, base: int, made_at: int, guard: str | None) -> Queued:
        """A changeset without operations, and not in the queue before it is appended.

        Within one transaction with that, so that its place and its counter stay its own.
        """
        (last,) = self._database.connection.execute(
            "SELECT coalesce(max(position), 0) FROM queue"
        ).fetchone()
        counter = self._meta.get("counter", 0) + 1
        return Queued(last + 1, id, counter, base, made_at, guard, [], "waiting")

    def append(self, queued: Queued) -> None:
        """Adds a changeset that was begun at the end, whole."""
        with self._database.transaction() as db:
            self._meta.set(counter=queued.counter)
            self._insert(db, queued)

    def put_first(self, changesets: Sequence[Queued]) -> None:
        """Puts changesets before all others, in their order: the server has lost them."""
        with self._database.transaction() as db:
            (first,) = db.execute("SELECT coalesce(min(position), 1) FROM queue").fetchone()
            for number, queued in enumerate(changesets):
                queued.position = first - len(changesets) + number
                queued.state, queued.seq = "waiting", None
                self._insert(db, queued)

    def _insert(self, db: sqlite3.Connection, queued: Queued) -> None:
        db.execute(
            f"INSERT INTO queue ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (
                queued.position,
                queued.id,
                queued.counter,
                queued.base,
                queued.made_at,
                queued.guard,
                msgspec.json.encode(queued.ops).decode(),
                queued.state,
            ),
        )
        db.executemany(
            "INSERT INTO queue_records (collection, id, position) VALUES (?, ?, ?)",
            [(*key, queued.position) for key in {op.key for op in queued.ops}],
        )

    def select(self, *states: State, limit: int = -1) -> list[Queued]:
        marks = ", ".join("?" * len(states))
        rows = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM queue WHERE state IN ({marks}) ORDER BY position LIMIT ?",
            (*states, limit),
        )
        return [_queued(row) for row in rows]

    def count(self, *states: State) -> int:
        marks = ", ".join("?" * len(states))
        statement = f"SELECT count(*) FROM queue WHERE state IN ({marks})"
        return int(self._database.connection.execute(statement, states).fetchone()[0])

    def find(self, id: str) -> Queued | None:
        row = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM queue WHERE id = ?", (id,)
        ).fetchone()
        return None if row is None else _queued(row)

    def touching(self, key: Key) -> list[Queued]:
        """What is shown of a record on top of what is confirmed."""
        columns = ", ".join(f"q.{name.strip()}" for name in _COLUMNS.split(","))
        rows = self._database.connection.execute(
            f"SELECT {columns} FROM queue_records r JOIN queue q USING (position) "
            "WHERE r.collection = ? AND r.id = ? AND q.state IN ('waiting', 'stored') "
            "ORDER BY position",
            key,
        )
        return [_queued(row) for row in rows]

    def set_state(
        self, id: str, state: State, seq: int | None = None, why: dict[str, str] | None = None
    ) -> None:
        with self._database.transaction() as db:
            db.execute(
                "UPDATE queue SET state = ?, seq = ?, why = ? WHERE id = ?",
                (state, seq, None if why is None else msgspec.json.encode(why).decode(), id),
            )

    def set_ops(self, queued: Queued) -> None:
        """Keeps the operations as they are now, on the same records as before."""
        with self._database.transaction() as db:
            ops = msgspec.json.encode(queued.ops).decode()
            db.execute("UPDATE queue SET ops = ? WHERE id = ?", (ops, queued.id))

    def remove(self, id: str) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM queue WHERE id = ?", (id,))

    def renumber(self, first: int, *, skip: int = 0) -> None:
        """Gives those that wait the counters `first`, `first + 1` ..., in order.

        The first `skip` of them keep theirs.
        """
        with self._database.transaction() as db:
            waiting = db.execute(
                "SELECT position FROM queue WHERE state = 'waiting' ORDER BY position "
                "LIMIT -1 OFFSET ?",
                (skip,),
            ).fetchall()
            db.executemany(
                "UPDATE queue SET counter = ? WHERE position = ?",
                [(counter, position) for counter, (position,) in enumerate(waiting, first)],
            )
            self._meta.set(counter=first + len(waiting) - 1)

    def cut_bases(self, seq: int) -> None:
        """What follows `seq` is not known to the server any more, so nothing can build on it."""
        with self._database.transaction() as db:
            db.execute("UPDATE queue SET base = min(base, ?)", (seq,))


class Sent:
    """What was acknowledged lately."""

    def __init__(self, database: Database):
        self._database = database

    def keep(self, queued: Queued, seq: int, now: int) -> None:
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO sent "
                "(seq, id, counter, base, made_at, guard, ops, acknowledged_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    seq,
                    queued.id,
                    queued.counter,
                    queued.base,
                    queued.made_at,
                    queued.guard,
                    msgspec.json.encode(queued.ops).decode(),
                    now,
                ),
            )

    def ops_of(self, id: str) -> list[Operation] | None:
        row = self._database.connection.execute(
            "SELECT ops FROM sent WHERE id = ?", (id,)
        ).fetchone()
        return None if row is None else _decode_ops(row[0])

    def take_after(self, seq: int) -> list[Queued]:
        """Removes and returns what was acknowledged after `seq`, in order."""
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT 0, id, counter, base, made_at, guard, ops, 'waiting', NULL, NULL "
                "FROM sent WHERE seq > ? ORDER BY seq",
                (seq,),
            ).fetchall()
            db.execute("DELETE FROM sent WHERE seq > ?", (seq,))
        return [_queued(row) for row in rows]

    def forget_before(self, time: int) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM sent WHERE acknowledged_at < ?", (time,))
