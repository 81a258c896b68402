"""Records as an app sees them, and collections to work with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from foldlog.domain.changesets import Operation

from .errors import RecordExists, RecordNotFound

if TYPE_CHECKING:
    from .replica import Replica

SYNCED, WAITING, TEMPORARY = 0, 1, 2


@dataclass(frozen=True)
class Record:
    """A record as it was when it was read. `record["title"]` is its field `title`."""

    collection: str
    id: str
    fields: Mapping[str, Any] = field(repr=True)
    is_deleted: bool = False
    #: RFC 3339, when the server received its last change; `None` before it has any
    last_modified: str | None = None
    #: 0 synced, 1 waiting to be sent, 2 temporary: only here, and may be purged
    sync_status: int = SYNCED
    #: of the event that changed it last; 0 before there is one
    seq: int = 0

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)


COLUMNS = "collection, id, fields, is_deleted, last_modified, sync_status, seq"
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def record_of(row: tuple[Any, ...]) -> Record:
    collection, id, fields, is_deleted, last_modified, sync_status, seq = row
    return Record(
        collection, id, _decode(fields), bool(is_deleted), last_modified, sync_status, seq
    )


class Collection:
    """The records of one collection of a replica.

    What changes them is in the local store and in the queue before it returns.
    """

    def __init__(self, replica: Replica, name: str):
        self.name = name
        self._replica = replica

    def __repr__(self) -> str:
        return f"Collection({self.name!r})"

    def __iter__(self) -> Iterator[Record]:
        return iter(self.query())

    def __len__(self) -> int:
        return self._replica._count(self.name)

    def create(
        self, fields: Mapping[str, Any] | None = None, /, *, id: str | None = None, **more: Any
    ) -> Record:
        """Makes a record and its id, a UUID unless one is given.

        Raises `RecordExists` if the id is taken, and `NotARecord` for what cannot be kept.
        """
        new = id or self._replica._new_id()
        with self._replica.changeset():
            if self.get(new) is not None:
                raise RecordExists(f"there is a record {self.name}/{new} already")
            self._apply(Operation("put", self.name, new, fields={**(fields or {}), **more}))
            return self._as_it_is(new)

    def put(self, id: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Record:
        """Sets fields of a record, which is made if there is none."""
        with self._replica.changeset():
            self._apply(Operation("put", self.name, id, fields={**(fields or {}), **more}))
            return self._as_it_is(id)

    def update(
        self,
        id: str,
        fields: Mapping[str, Any] | None = None,
        /,
        *,
        unset: str | Sequence[str] = (),
        **more: Any,
    ) -> Record:
        """Sets and removes fields of a record. Raises `RecordNotFound` if there is none."""
        changed = {**(fields or {}), **more}
        removed = [unset] if isinstance(unset, str) else list(unset)
        with self._replica.changeset():
            self[id]
            self._apply(Operation("put", self.name, id, fields=changed, unset=removed or UNSET))
            return self._as_it_is(id)

    def increment(self, id: str, **numbers: float) -> Record:
        """Adds numbers to fields: increments of several devices all count.

        Raises `RecordNotFound` if there is none.
        """
        with self._replica.changeset():
            self[id]
            self._apply(Operation("add", self.name, id, fields=dict(numbers)))
            return self._as_it_is(id)

    def delete(self, id: str) -> None:
        """Deletes a record. Raises `RecordNotFound` if there is none."""
        with self._replica.changeset():
            if self[id].sync_status == TEMPORARY:
                self._replica._drop_temporary((self.name, id))
            else:
                self._apply(Operation("delete", self.name, id))

    def create_temporary(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Record:
        """Makes a record that stays on this device and may be purged, until it is kept."""
        key = self.name, self._replica._new_id()
        self._replica._put_temporary(key, {**(fields or {}), **more})
        return self._as_it_is(key[1])

    def keep(self, id: str) -> Record:
        """Makes a temporary record an ordinary one, which is sent like the others."""
        with self._replica.changeset():
            record = self[id]
            if record.sync_status == TEMPORARY:
                self._replica._drop_temporary((self.name, id))
                self._apply(Operation("put", self.name, id, fields=dict(record.fields)))
            return self._as_it_is(id)

    def get(self, id: str, *, deleted: bool = False) -> Record | None:
        """The record, or `None`; with `deleted`, also its tombstone."""
        record = self._replica._find((self.name, id))
        return record if record is not None and (deleted or not record.is_deleted) else None

    def __getitem__(self, id: str) -> Record:
        """The record. Raises `RecordNotFound`."""
        record = self.get(id)
        if record is None:
            raise RecordNotFound(f"there is no record {self.name}/{id}")
        return record

    def query(
        self,
        where: Mapping[str, Any] | None = None,
        *,
        order_by: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        deleted: bool = False,
    ) -> list[Record]:
        """Live records whose fields have these values; a list or tuple means any of its values.

        `order_by` names a field, `-name` for descending; without it, and on ties, by id. `None`
        also finds records without the field.
        """
        return self._replica._query(self.name, where or {}, order_by, limit, offset, deleted)

    def _as_it_is(self, id: str) -> Record:
        """What a change has come to: a tombstone, if it lost to a delete that was not seen."""
        record = self.get(id, deleted=True)
        assert record is not None
        return record

    def _apply(self, op: Operation) -> None:
        record = self._replica._find(op.key)
        if record is not None and record.sync_status == TEMPORARY:
            self._replica._change_temporary(record, op)
        else:
            self._replica._apply(op)


_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def json_path(name: str) -> str:
    """The path of a field for SQLite's JSON functions."""
    if _PLAIN_NAME.fullmatch(name):
        return f"$.{name}"
    if '"' in name or "\\" in name:
        raise ValueError(f"cannot look for a field named {name!r}")
    return f'$."{name}"'


def condition(name: str, value: Any) -> tuple[str, list[Any]]:
    """SQL for "this field has this value", with its parameters. Typed: true is not 1."""
    path = json_path(name)
    if isinstance(value, list | tuple | set | frozenset):
        parts = [condition(name, item) for item in value]
        if not parts:
            return "0", []
        return "(" + " OR ".join(sql for sql, _ in parts) + ")", [p for _, ps in parts for p in ps]
    if value is None:
        return "coalesce(json_type(fields, ?), 'null') = 'null'", [path]
    if isinstance(value, bool):
        return "json_type(fields, ?) = ?", [path, "true" if value else "false"]
    if isinstance(value, int | float):
        return (
            "(json_type(fields, ?) IN ('integer', 'real') AND json_extract(fields, ?) = ?)",
            [path, path, value],
        )
    if isinstance(value, str):
        return "(json_type(fields, ?) = 'text' AND json_extract(fields, ?) = ?)", [
            path,
            path,
            value,
        ]
    raise ValueError(f"cannot look for a {type(value).__name__}")
