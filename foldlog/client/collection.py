"""The records of one collection, to read and to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from foldlog.domain.changesets import Operation

from .errors import RecordExists, RecordNotFound
from .record import TEMPORARY, Record
from .store.local_store import LocalStore


class Collection:
    """The records of one collection of a replica. `Replica.collection` returns it.

    Each change is in the local file and in the queue when the call returns. Iterating yields the
    live records, `len` counts them, and `tasks[id]` reads one.

        tasks = replica.collection("tasks")
        milk = tasks.create(title="Buy milk", done=False)
        tasks.update(milk.id, done=True)
        [task.id for task in tasks.query({"done": True})]

    Field names are text, values are JSON values: `None`, `bool`, `int` up to 2^53, finite `float`,
    `str`, `list` and `dict`. Every change raises `NotARecord` for other values.
    """

    def __init__(self, store: LocalStore, name: str):
        self.name = name
        self._store = store

    def __repr__(self) -> str:
        return f"Collection({self.name!r})"

    def __iter__(self) -> Iterator[Record]:
        """Yields the live records by id."""
        return iter(self.query())

    def __len__(self) -> int:
        """Counts the live records."""
        return self._store.records.count(self.name)

    def create(
        self, fields: Mapping[str, Any] | None = None, /, *, id: str | None = None, **more: Any
    ) -> Record:
        """Creates a record with the given fields, and returns it.

        Fields are given as a mapping, as keyword arguments, or both. The id is a new UUID (version
        7) unless `id` is given, a text of 1 to 128 characters.

        Raises `RecordExists` if the id is taken.
        """
        id = id or self._store.new_id()
        with self._store.changeset():
            if self.get(id) is not None:
                raise RecordExists(f"the record {self.name}/{id} exists already")
            return self._apply(Operation("put", self.name, id, fields={**(fields or {}), **more}))

    def put(self, id: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Record:
        """Sets fields of a record, and returns it. Other fields keep their values.

        A missing or deleted record is created.
        """
        return self._apply(Operation("put", self.name, id, fields={**(fields or {}), **more}))

    def update(
        self,
        id: str,
        fields: Mapping[str, Any] | None = None,
        /,
        *,
        unset: str | Sequence[str] = (),
        **more: Any,
    ) -> Record:
        """Sets fields of an existing record, removes the fields named in `unset`, and returns it.

            tasks.update(milk.id, {"done": True}, unset=["due", "note"])

        Raises `RecordNotFound`.
        """
        changed = {**(fields or {}), **more}
        removed = [unset] if isinstance(unset, str) else list(unset)
        with self._store.changeset():
            self[id]
            return self._apply(
                Operation("put", self.name, id, fields=changed, unset=removed or UNSET)
            )

    def increment(self, id: str, **numbers: float) -> Record:
        """Adds numbers to fields of an existing record, and returns it.

        Increments of several devices add up, where `update` would keep one value. A missing field
        counts as 0.

            tasks.increment(milk.id, bottles=2)

        Raises `RecordNotFound`.
        """
        with self._store.changeset():
            self[id]
            return self._apply(Operation("add", self.name, id, fields=dict(numbers)))

    def delete(self, id: str) -> None:
        """Deletes a record. Raises `RecordNotFound`."""
        with self._store.changeset():
            if self[id].sync_status == TEMPORARY:
                self._store.records.drop_temporary((self.name, id))
            else:
                self._store.apply(Operation("delete", self.name, id))

    def create_temporary(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Record:
        """Creates a record that stays on this device, for example a search result.

        `keep` makes it an ordinary record, and `Replica.purge_temporary` deletes it.
        """
        id = self._store.new_id()
        self._store.put_temporary((self.name, id), {**(fields or {}), **more})
        return self[id]

    def keep(self, id: str) -> Record:
        """Makes a temporary record an ordinary one, which is sent to the server.

        Raises `RecordNotFound`.
        """
        with self._store.changeset():
            record = self[id]
            if record.sync_status != TEMPORARY:
                return record
            self._store.records.drop_temporary((self.name, id))
            return self._apply(Operation("put", self.name, id, fields=dict(record.fields)))

    def get(self, id: str, *, deleted: bool = False) -> Record | None:
        """Returns a record, or `None` if it is missing or deleted.

        With `deleted=True`, returns the tombstone of a deleted record.
        """
        record = self._store.records.find((self.name, id))
        return record if record is not None and (deleted or not record.is_deleted) else None

    def __getitem__(self, id: str) -> Record:
        """Returns a record. Raises `RecordNotFound`."""
        record = self.get(id)
        if record is None:
            raise RecordNotFound(f"the record {self.name}/{id} does not exist")
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
        """Returns the records whose fields have the values of `where`.

        A list or a tuple means any of its values. `None` also matches a missing field. Values match
        with their JSON type: `True` differs from 1.

            tasks.query({"done": False, "list": ["home", "work"]}, order_by="-due", limit=10)

        `order_by` is a field name, with a `-` before it for descending order. Ties, and records
        without `order_by`, are ordered by id. `limit` (default: all) and `offset` select a page.
        With `deleted=True`, tombstones are included.

        Raises `ValueError` for values that cannot be compared, such as a `dict`.
        """
        return self._store.records.query(
            self.name, where or {}, order_by=order_by, limit=limit, offset=offset, deleted=deleted
        )

    def _apply(self, op: Operation) -> Record:
        """Applies an operation, and returns the record.

        The record may be a tombstone: a put loses to a delete whose event has not arrived yet.
        """
        with self._store.changeset():
            self._store.apply(op)
            record = self._store.records.find(op.key)
        assert record is not None
        return record
