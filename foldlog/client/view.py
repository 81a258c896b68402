"""What a device shows: the fold of the events, and its own queue on top.

Both by the functions of `domain/`. What the queue will come to is what the merge would make of it
if it arrived now; the server's answer may differ, and then the events say so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import Key, Record, fold

from .database import Database, Meta
from .queue import Queue, Queued

SYNCED, WAITING, TEMPORARY = 0, 1, 2

_decode_record = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.encode


class _Looks(msgspec.Struct):
    """What one record comes to."""

    records: dict[Key, Record]  #: the record as it is shown, by its key, if there is one
    confirmed: Record | None
    is_waiting: bool = False


class Making(msgspec.Struct):
    """A changeset that is being made: in memory until its block ends, and then in the queue.

    With what its records have come to. So an operation costs the same however many there were
    before it; read from the queue, each would be the work of all.
    """

    queued: Queued
    looks: dict[Key, _Looks] = {}


class View:
    def __init__(self, database: Database, meta: Meta, queue: Queue):
        self._database = database
        self._meta = meta
        self._queue = queue

    def confirmed(self, keys: Iterable[Key]) -> tuple[dict[Key, Record], dict[Key, int]]:
        """The records as the events made them; and up to which seq a snapshot has them already."""
        records: dict[Key, Record] = {}
        as_of: dict[Key, int] = {}
        for key in keys:
            row = self._database.connection.execute(
                "SELECT confirmed, as_of FROM records WHERE collection = ? AND id = ?", key
            ).fetchone()
            if row is not None:
                as_of[key] = row[1]
                if row[0] is not None:
                    records[key] = _decode_record(row[0])
        return records, as_of

    def confirm(self, records: Iterable[Record], as_of: int | None = None) -> None:
        """Keeps what the events, or a snapshot true at `as_of`, made of these records."""
        with self._database.transaction() as db:
            db.executemany(
                "INSERT INTO records (collection, id, confirmed, as_of) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (collection, id) DO UPDATE SET confirmed = excluded.confirmed, "
                "is_stale = 0, as_of = max(as_of, excluded.as_of)",
                [(r.collection, r.id, _encode(r).decode(), as_of or 0) for r in records],
            )

    def refresh(self, keys: Iterable[Key]) -> list[Key]:
        """Shows these records anew; returns those that look different now."""
        changed = []
        with self._database.transaction() as db:
            for key in keys:
                before = db.execute(
                    "SELECT fields, is_deleted, is_there FROM records "
                    "WHERE collection = ? AND id = ?",
                    key,
                ).fetchone()
                after = self._show(db, key, self._with_queue(key))
                if after != before:
                    changed.append(key)
        return changed

    def add(self, making: Making, op: Operation) -> None:
        """Adds an operation to the changeset that is being made, and shows what it does."""
        looks = making.looks.get(op.key)
        if looks is None:
            looks = making.looks[op.key] = self._with_queue(op.key)
        event = self._as_event(making.queued)
        event.ops = [op]
        fold(looks.records, event)
        looks.is_waiting = True
        making.queued.ops.append(op)
        with self._database.transaction() as db:
            self._show(db, op.key, looks)

    def _with_queue(self, key: Key) -> _Looks:
        """A record as the events and the queue make it."""
        records, as_of = self.confirmed([key])
        looks = _Looks(records, records.get(key))
        for queued in self._queue.touching(key):
            looks.is_waiting = True
            if queued.seq is not None and queued.seq <= as_of.get(key, 0):
                continue  # a snapshot's record has it already
            event = self._as_event(queued)
            event.ops = [op for op in event.ops if op.key == key]
            fold(records, event)
        return looks

    def _as_event(self, queued: Queued) -> Event:
        skew = self._meta.get("skew", 0)
        return queued.as_event(self._meta.get("device"), max(0, queued.made_at + skew))

    def _show(self, db: sqlite3.Connection, key: Key, looks: _Looks) -> tuple[str, int, int]:
        """Writes a record as it is shown."""
        confirmed, shown = looks.confirmed, looks.records.get(key) or Record(*key)
        written = (_encode(shown.fields).decode(), int(shown.is_deleted), int(shown.exists))
        db.execute(
            "INSERT INTO records (collection, id, fields, is_deleted, is_there, sync_status, "
            "last_modified, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (collection, id) DO UPDATE SET fields = excluded.fields, "
            "is_deleted = excluded.is_deleted, is_there = excluded.is_there, "
            "sync_status = excluded.sync_status, last_modified = excluded.last_modified, "
            "seq = excluded.seq",
            (
                *key,
                *written,
                WAITING if looks.is_waiting else SYNCED,
                confirmed.last_modified or None if confirmed else None,
                confirmed.seq if confirmed else 0,
            ),
        )
        return written
