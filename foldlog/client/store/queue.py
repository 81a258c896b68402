"""Stores the queue of this device's changesets. A changeset stays in the queue until the device has
pulled the event that the server created from this changeset.

A changeset that the server did not accept stays in the queue until the app repairs or drops it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import Key
from foldlog.domain.times import format_time

from .database import Database
from .erasure import to_wire
from .meta import Meta

#: waiting: still to be sent. stored: the server has it, and its event is still to be pulled.
#: refused: a guard failed, or a schema. rejected: it is malformed or over a limit for the server.
#: Refused and rejected changesets wait for the app.
State = Literal["waiting", "stored", "refused", "rejected"]

_COLUMNS = "position, id, counter, base, made_at, guard, ops, state, seq, why"
_decode_ops = msgspec.json.Decoder(list[Operation]).decode
#: of a changeset in a request, besides its operations
HEAD_BYTES = 160
#: above every seq of a log: a queued changeset is folded after all events
_SEQ_OFFSET = 2**52


class Queued(msgspec.Struct):
    """A changeset in the queue.

    `base` is the cursor of the device when the changeset was begun. `made_at` is the time when the
    changeset was begun, in ms since 1970, by the clock of the device.
    """

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
    size: int = 0  #: about the bytes that the changeset has in a request

    def to_wire(self) -> dict[str, Any]:
        """Returns the changeset as the JSON object that is sent to the server
        (docs/reference/protocol.md).
        """
        changeset: dict[str, Any] = {
            "id": self.id,
            "base": self.base,
            "made_at": format_time(self.made_at),
            "ops": [to_wire(op) for op in self.ops],
        }
        if self.counter is not None:
            changeset["counter"] = self.counter
        if self.guard is not None:
            changeset["guard"] = self.guard
        return changeset

    def as_event(self, device: str, time: int) -> Event:
        """Returns an `Event` with the operations of this changeset, so that `fold` can apply the
        changeset to records before the server has stored it.

        The seq of the event is greater than all seqs of the log. `device` is the device id, and
        `time` is the time of the changeset by the server's clock, in ms since 1970.
        """
        return Event(
            seq=_SEQ_OFFSET + self.position,
            kind="changeset",
            id=self.id,
            received_at="",
            verdict="stored",
            device=device,
            base=self.base,
            time=time,
            ops=self.ops,
        )


def queued_from(row: Sequence[Any]) -> Queued:
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
        len(ops.encode()) + HEAD_BYTES,
    )


class Queue:
    """Reads and writes the queued changesets, in the order in which they were made."""

    def __init__(self, database: Database, meta: Meta):
        self._database = database
        self._meta = meta

    def begin(self, id: str, base: int, made_at: int, guard: str | None) -> Queued:
        """Returns a new, empty changeset. `append` later adds the changeset to the queue.

        Call both methods in the same transaction: `begin` only reads the next position and
        counter, and `append` saves them.
        """
        (last,) = self._database.connection.execute(
            "SELECT coalesce(max(position), 0) FROM queue"
        ).fetchone()
        counter = self._meta.get("counter", 0) + 1
        return Queued(last + 1, id, counter, base, made_at, guard, [], "waiting")

    def append(self, queued: Queued) -> None:
        """Adds a changeset with its operations to the end of the queue."""
        with self._database.transaction() as db:
            self._meta.set(counter=queued.counter)
            self._insert(db, queued)

    def put_first(self, changesets: Sequence[Queued]) -> None:
        """Inserts changesets at the front of the queue, in the given order, so that they are sent
        again.

        Called after the server had stored these changesets and then lost them, for example in a
        restore from a backup.
        """
        with self._database.transaction() as db:
            (first,) = db.execute("SELECT coalesce(min(position), 1) FROM queue").fetchone()
            for position, queued in enumerate(changesets, first - len(changesets)):
                queued.position = position
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

    def select(self, *states: State, limit: int = -1, bytes_max: int | None = None) -> list[Queued]:
        """Returns the changesets that have one of the given states, oldest first.

        Returns at most `limit` changesets; -1, the default, means all. With `bytes_max`, the list
        ends before the changesets have more bytes together, but it has at least one changeset.
        """
        marks = ", ".join("?" * len(states))
        rows = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM queue WHERE state IN ({marks}) ORDER BY position LIMIT ?",
            (*states, limit),
        )
        found, size = list[Queued](), 0
        for queued in map(queued_from, rows):
            size += queued.size
            if found and bytes_max is not None and size > bytes_max:
                break
            found.append(queued)
        return found

    def count(self, *states: State) -> int:
        marks = ", ".join("?" * len(states))
        statement = f"SELECT count(*) FROM queue WHERE state IN ({marks})"
        return int(self._database.connection.execute(statement, states).fetchone()[0])

    def find(self, id: str) -> Queued | None:
        row = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM queue WHERE id = ?", (id,)
        ).fetchone()
        return None if row is None else queued_from(row)

    def touching(self, key: Key) -> list[Queued]:
        """Returns a list of the queued changesets that have an operation on the record `key`,
        oldest first.

        The list only contains changesets in the states "waiting" (still to be sent) and "stored"
        (stored by the server, but the device has not pulled the event yet).
        """
        columns = ", ".join(f"q.{name.strip()}" for name in _COLUMNS.split(","))
        rows = self._database.connection.execute(
            f"SELECT {columns} FROM queue_records r JOIN queue q USING (position) "
            "WHERE r.collection = ? AND r.id = ? AND q.state IN ('waiting', 'stored') "
            "ORDER BY position",
            key,
        )
        return [queued_from(row) for row in rows]

    def set_state(
        self, id: str, state: State, seq: int | None = None, why: dict[str, str] | None = None
    ) -> None:
        with self._database.transaction() as db:
            db.execute(
                "UPDATE queue SET state = ?, seq = ?, why = ? WHERE id = ?",
                (state, seq, None if why is None else msgspec.json.encode(why).decode(), id),
            )

    def set_ops(self, queued: Queued) -> None:
        """Replaces the operations of a changeset. The new operations must be on the same
        records as the old ones.
        """
        with self._database.transaction() as db:
            ops = msgspec.json.encode(queued.ops).decode()
            db.execute("UPDATE queue SET ops = ? WHERE id = ?", (ops, queued.id))

    def remove(self, id: str) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM queue WHERE id = ?", (id,))

    def renumber(self, first: int, *, skip: int = 0) -> None:
        """Gives the waiting changesets new counters: `first`, `first + 1`, and so on,
        oldest first.

        The first `skip` waiting changesets keep their counters.
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
        """Sets the base of each queued changeset to `seq`, if the base is greater than `seq`.

        Called when the server has lost the events after `seq`, because a greater base would refer
        to a lost event.
        """
        with self._database.transaction() as db:
            db.execute("UPDATE queue SET base = min(base, ?)", (seq,))
