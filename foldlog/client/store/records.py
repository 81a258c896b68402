"""Reads the records that an app sees, and writes temporary records, which stay on this device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from foldlog.client.record import TEMPORARY, Record
from foldlog.domain.changesets import Operation
from foldlog.domain.merge import Key
from foldlog.domain.names import is_record_id
from foldlog.domain.values import is_number, sum_of

from .database import Database
from .filters import condition, json_path

_COLUMNS = "collection, id, fields, is_deleted, last_modified, sync_status, seq"
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _record(row: tuple[Any, ...]) -> Record:
    collection, id, fields, is_deleted, last_modified, sync_status, seq = row
    return Record(
        collection, id, _decode(fields), bool(is_deleted), last_modified, sync_status, seq
    )


def changed_fields(record: Record, op: Operation) -> dict[str, Any]:
    """Returns a dict of the fields that `record` would have after the operation `op`. The operation
    is a `put` or an `add`. The object `record` stays as it is.
    """
    fields = dict(record.fields)
    for name, value in (op.fields or {}).items():
        if op.op == "add" and is_number(old := fields.get(name, 0)):
            value = sum_of(old, value)
        fields[name] = value
    for name in op.unset if op.unset is not UNSET else ():
        fields.pop(name, None)
    return fields


class Records:
    """Reads the records in the form that the app sees, and writes temporary records.

    The app sees the values that the server has confirmed, with the changes of the queued changesets
    applied to them.
    """

    def __init__(self, database: Database):
        self._database = database

    def find(self, key: Key) -> Record | None:
        """Returns a record, or its tombstone if it was deleted. Returns `None` if the
        record is missing.
        """
        if not is_record_id(key[1]):
            return None
        row = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM records WHERE collection = ? AND id = ? AND is_there", key
        ).fetchone()
        return None if row is None else _record(row)

    def count(self, collection: str) -> int:
        """Returns the number of records in a collection, except deleted ones."""
        row = self._database.connection.execute(
            "SELECT count(*) FROM records WHERE collection = ? AND is_there AND NOT is_deleted",
            (collection,),
        ).fetchone()
        return int(row[0])

    def query(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        order_by: str | None,
        limit: int | None,
        offset: int,
        deleted: bool,
    ) -> list[Record]:
        """Returns the records of a collection that match `where` (see `Collection.query`)."""
        conditions, params = ["collection = ?", "is_there"], [collection]
        if not deleted:
            conditions.append("NOT is_deleted")
        for name, value in where.items():
            sql, values = condition(name, value)
            conditions.append(sql)
            params += values
        order = "id"
        if order_by is not None:
            direction = "DESC" if order_by.startswith("-") else "ASC"
            order = f"json_extract(fields, ?) {direction}, id"
            params.append(json_path(order_by.removeprefix("-")))
        rows = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM records WHERE {' AND '.join(conditions)} "
            f"ORDER BY {order} LIMIT ? OFFSET ?",
            (*params, -1 if limit is None else limit, offset),
        )
        return [_record(row) for row in rows]

    def put_temporary(self, key: Key, fields: dict[str, Any]) -> None:
        """Creates a temporary record, which is stored only on this device. If the record
        exists already, its fields are replaced.
        """
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO records (collection, id, fields, is_there, sync_status) "
                "VALUES (?, ?, ?, 1, ?) ON CONFLICT (collection, id) DO UPDATE "
                "SET fields = excluded.fields",
                (*key, msgspec.json.encode(fields).decode(), TEMPORARY),
            )

    def drop_temporary(self, key: Key) -> None:
        with self._database.transaction() as db:
            db.execute(
                "DELETE FROM records WHERE collection = ? AND id = ? AND sync_status = ?",
                (*key, TEMPORARY),
            )

    def purge_temporary(self) -> int:
        """Deletes all temporary records, and returns the number of deleted records."""
        with self._database.transaction() as db:
            return db.execute("DELETE FROM records WHERE sync_status = ?", (TEMPORARY,)).rowcount
