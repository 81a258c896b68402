"""Computes the records that an app sees: the records confirmed by the server, with the queued
changesets applied to them.

The queued changesets are merged as if the server stored them now, with the server's merge rules
(`foldlog.domain`). If the server decides differently later, its events correct the record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from foldlog.client.record import SYNCED, WAITING
from foldlog.domain.changesets import Operation
from foldlog.domain.events import Event
from foldlog.domain.merge import Key, Record, fold

from .checks import Size, check_merged
from .database import Database
from .meta import Meta
from .queue import Queue, Queued

_decode_record = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.encode


class _Shown(msgspec.Struct):
    """Contains the two forms of one record: the form that the server has confirmed, and the form
    that the app sees. `is_waiting` is `True` if a changeset on the record is in the queue.
    """

    records: dict[Key, Record]  #: the shown record by its key; empty if it does not exist
    confirmed: Record | None
    is_waiting: bool = False


class Draft(msgspec.Struct):
    """Holds a changeset that is still open. When its `with` block ends, the changeset is added
    to the queue.

    `shown` caches the records that the changeset changes. Without the cache, each new operation
    would need all earlier operations to be applied again.
    """

    queued: Queued
    shown: dict[Key, _Shown] = {}
    size: Size = msgspec.field(default_factory=Size)


class View:
    """Computes and stores the two forms of each record: the form that the server has confirmed, and
    the form that the app sees.
    """

    def __init__(self, database: Database, meta: Meta, queue: Queue):
        self._database = database
        self._meta = meta
        self._queue = queue

    def confirmed(self, keys: Iterable[Key]) -> tuple[dict[Key, Record], dict[Key, int]]:
        """Reads the given records from the file, and returns two dicts. The first dict maps the key
        of a record to the record as confirmed by the server. The second dict maps the key to the
        seq at which the server read the record for a snapshot, or to 0 if the record came from
        events only.

        Both dicts leave out the records that are missing in the file. The first dict also leaves
        out records that the server has not confirmed yet.
        """
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
        """Stores the given records as the form that the server has confirmed.

        If the records came from a snapshot, `as_of` is the seq at which the server read the
        records. If the records were computed from events, `as_of` is `None`.
        """
        with self._database.transaction() as db:
            db.executemany(
                "INSERT INTO records (collection, id, confirmed, as_of) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (collection, id) DO UPDATE SET confirmed = excluded.confirmed, "
                "is_stale = 0, as_of = max(as_of, excluded.as_of)",
                [(r.collection, r.id, _encode(r).decode(), as_of or 0) for r in records],
            )

    def refresh(self, keys: Iterable[Key]) -> list[Key]:
        """Updates the given records in the local table, after their confirmed form or the queue has
        changed. For each record, computes the form that the app sees, and stores this form.

        Returns a list of the keys of the records that look different to the app now.
        """
        changed = []
        with self._database.transaction() as db:
            for key in keys:
                before = db.execute(
                    "SELECT fields, is_deleted, is_there FROM records "
                    "WHERE collection = ? AND id = ?",
                    key,
                ).fetchone()
                after = self._write(db, key, self._with_queue(key))
                if after != before:
                    changed.append(key)
        return changed

    def add(self, draft: Draft, op: Operation) -> None:
        """Adds the operation `op` to an open changeset (`draft`). Also applies the operation to the
        record, and stores the new values in the local table, where the app reads them.

        Raises `LimitExceeded` if the record would become too large.
        """
        shown = draft.shown.get(op.key)
        if shown is None:
            shown = draft.shown[op.key] = self._with_queue(op.key)
        event = self._as_event(draft.queued)
        event.ops = [op]
        check_merged(fold(shown.records, event))
        shown.is_waiting = True
        draft.queued.ops.append(op)
        with self._database.transaction() as db:
            self._write(db, op.key, shown)

    def _with_queue(self, key: Key) -> _Shown:
        """Returns the two forms of a record: the form that the server has confirmed, and the form
        that the app sees. Computes the form that the app sees by applying the queued changesets to
        the confirmed form.
        """
        records, as_of = self.confirmed([key])
        shown = _Shown(records, records.get(key))
        for queued in self._queue.touching(key):
            shown.is_waiting = True
            if queued.seq is not None and queued.seq <= as_of.get(key, 0):
                continue  # the snapshot contains it already
            event = self._as_event(queued)
            event.ops = [op for op in event.ops if op.key == key]
            fold(records, event)
        return shown

    def _as_event(self, queued: Queued) -> Event:
        skew = self._meta.get("skew", 0)
        return queued.as_event(self._meta.device, max(0, queued.made_at + skew))

    def _write(self, db: sqlite3.Connection, key: Key, shown: _Shown) -> tuple[str, int, int]:
        """Stores a record in the local table, in the form that the app sees. Returns a tuple of the
        new values of the columns `fields` (JSON text), `is_deleted` (0 or 1) and `is_there` (0 or
        1).
        """
        confirmed, record = shown.confirmed, shown.records.get(key) or Record(*key)
        written = (_encode(record.fields).decode(), int(record.is_deleted), int(record.exists))
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
                WAITING if shown.is_waiting else SYNCED,
                confirmed.last_modified or None if confirmed else None,
                confirmed.seq if confirmed else 0,
            ),
        )
        return written
