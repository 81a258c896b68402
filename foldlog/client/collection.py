"""Defines `Collection`, with which an app reads and changes the records of one collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import UNSET

from foldlog.domain.changesets import Operation
from foldlog.domain.values import is_number, sum_of

from .errors import BadArgument, LimitExceeded, NotARecord, RecordExists, RecordNotFound
from .record import TEMPORARY, Record
from .store.local_store import LocalStore

#: rows of one part of `create_many`, `update_many` and `delete_many`
PART_ROWS_MAX = 500
#: a part ends when its operations have so many bytes; a small part passes a link that breaks
PART_BYTES = 256 * 2**10
#: called with the number of rows that are done, and of all rows
Progress = Callable[[int, int], object]
Row = TypeVar("Row")
Changed = TypeVar("Changed")


def _quiet(done: int, total: int) -> None:
    """Ignores the progress."""


class Collection:
    """Reads and changes the records of one collection. `Replica.collection` returns this
    object.

    A method that changes a record writes the change to the local file and to the queue before
    it returns. Iterating yields the records that exist, `len` counts them, and `tasks[id]`
    reads one. Deleted records are left out.

        tasks = replica.collection("tasks")
        milk = tasks.create(title="Buy milk", done=False)
        tasks.update(milk.id, done=True)
        [task.id for task in tasks.query({"done": True})]

    Field names are text. Values are JSON values: `None`, `bool`, `int` up to 2^53, finite
    `float`, `str`, `list` and `dict`. Methods that change a record raise `NotARecord` for other
    values.
    """

    def __init__(self, store: LocalStore, name: str):
        self.name = name
        self._store = store

    def __repr__(self) -> str:
        return f"Collection({self.name!r})"

    def __iter__(self) -> Iterator[Record]:
        """Yields the records of the collection, except deleted ones, ordered by id."""
        return iter(self.query())

    def __len__(self) -> int:
        """Returns the number of records of the collection, except deleted ones."""
        return self._store.records.count(self.name)

    def create(
        self, fields: Mapping[str, Any] | None = None, /, *, id: str | None = None, **more: Any
    ) -> Record:
        """Creates a record with the given fields, and returns the record.

        The fields are given as a mapping, as keyword arguments, or both. `id` is a text of
        1 to 128 characters; by default the record gets a new UUID (version 7).

        Raises `RecordExists` if a record with this id exists.
        """
        id = id or self._store.new_id()
        with self._store.changeset():
            if self.get(id) is not None:
                raise RecordExists(f"the record {self.name}/{id} exists already")
            return self._apply(Operation("put", self.name, id, fields={**(fields or {}), **more}))

    def put(self, id: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Record:
        """Sets the given fields of a record, and returns the record. The other fields of
        the record keep their values.

        If the record is missing or deleted, this method creates it.
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
        """Sets the given fields of an existing record, removes the fields named in `unset`,
        and returns the record.

            tasks.update(milk.id, {"done": True}, unset=["due", "note"])

        Raises `RecordNotFound` if the record is missing or deleted.
        """
        changed = {**(fields or {}), **more}
        removed = [unset] if isinstance(unset, str) else list(unset)
        with self._store.changeset():
            self[id]
            return self._apply(
                Operation("put", self.name, id, fields=changed, unset=removed or UNSET)
            )

    def increment(self, id: str, **numbers: float) -> Record:
        """Adds a number to each given field of an existing record, and returns the record.

        Use this method for a field that several devices increase: the numbers of all
        devices are added, while `update` would keep the value of only one device. A missing
        field is treated as 0.

            tasks.increment(milk.id, bottles=2)

        Raises `RecordNotFound` if the record is missing or deleted, `BadArgument` if a field has a
        value that is no number, and `NotARecord` if an argument is no number.
        """
        with self._store.changeset():
            record = self[id]
            for name, number in numbers.items():
                _check_sum(name, record.get(name, 0), number)
            return self._apply(Operation("add", self.name, id, fields=dict(numbers)))

    def create_many(
        self,
        rows: Iterable[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]],
        *,
        on_progress: Progress = _quiet,
    ) -> list[Record]:
        """Creates a record for each row, in as many changesets as the limits of the service need,
        and returns the records in the order of the rows.

            tasks.create_many({"title": line} for line in lines)
            tasks.create_many({"task-1": {"title": "Milk"}, "task-2": {"title": "Bread"}})

        A row is a mapping of fields. The records get new ids, unless `rows` is a mapping of ids to
        rows. Each part of the rows is one changeset, of at most 500 rows and about 256 KiB: all of
        its records are created, or none. `on_progress(done, total)` is called after each part, with
        numbers of rows.

        If a row raises an error, for example `RecordExists` or `LimitExceeded`, its part is undone,
        and the earlier parts stay. The last call of `on_progress` had their number.

        In an open `changeset` block all rows belong to the changeset of the block, which may then
        raise `LimitExceeded`.
        """
        pairs = rows.items() if isinstance(rows, Mapping) else ((None, row) for row in rows)
        return self._in_parts(pairs, lambda row: self.create(row[1], id=row[0]), on_progress)

    def update_many(
        self,
        rows: Iterable[tuple[str, Mapping[str, Any]]] | Mapping[str, Mapping[str, Any]],
        *,
        on_progress: Progress = _quiet,
    ) -> list[Record]:
        """Sets fields of many existing records, as `update` does, and returns the records.

            tasks.update_many({task.id: {"done": True} for task in tasks.query({"done": False})})

        `rows` maps ids to the fields to set, or is a sequence of such pairs. The parts, errors and
        `on_progress` are those of `create_many`. Raises `RecordNotFound` if a record is missing or
        deleted.
        """
        pairs = rows.items() if isinstance(rows, Mapping) else rows
        return self._in_parts(pairs, lambda row: self.update(row[0], row[1]), on_progress)

    def delete_many(self, ids: Iterable[str], *, on_progress: Progress = _quiet) -> None:
        """Deletes many records.

        The parts, errors and `on_progress` are those of `create_many`. Raises `RecordNotFound` if a
        record is missing or deleted already.
        """
        if isinstance(ids, str):
            raise BadArgument("delete_many takes several ids: use `delete` for one")
        self._in_parts(ids, self.delete, on_progress)

    def _in_parts(
        self, rows: Iterable[Row], change: Callable[[Row], Changed], on_progress: Progress
    ) -> list[Changed]:
        """Calls `change` for each row, in one changeset for each part of the rows."""
        waiting, changed = list(rows), list[Changed]()
        size = PART_ROWS_MAX
        while len(changed) < len(waiting):
            part = waiting[len(changed) : len(changed) + size]
            try:
                done = self._change_part(part, change)
            except LimitExceeded:
                if len(part) == 1 or self._store.is_in_changeset:
                    raise
                size = len(part) // 2  # a part may be too large where its rows are not
                continue
            changed += done
            size = min(PART_ROWS_MAX, size * 2)
            on_progress(len(changed), len(waiting))
        return changed

    def _change_part(self, part: list[Row], change: Callable[[Row], Changed]) -> list[Changed]:
        """Changes rows in one changeset, until it has `PART_BYTES` or all rows."""
        done = list[Changed]()
        with self._store.changeset():
            for row in part:
                done.append(change(row))
                if self._store.changeset_bytes >= PART_BYTES:
                    break
        return done

    def delete(self, id: str) -> None:
        """Deletes a record. Raises `RecordNotFound` if the record is missing or deleted
        already.
        """
        with self._store.changeset():
            if self[id].sync_status == TEMPORARY:
                self._store.records.drop_temporary((self.name, id))
            else:
                self._store.apply(Operation("delete", self.name, id))

    def create_temporary(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Record:
        """Creates a temporary record, for example for a search result, and returns the record. A
        temporary record stays on this device, and is never sent to the server.

        Call `keep` to make the record an ordinary record later. Call `Replica.purge_temporary` to
        delete all temporary records.
        """
        id = self._store.new_id()
        self._store.put_temporary((self.name, id), {**(fields or {}), **more})
        return self[id]

    def keep(self, id: str) -> Record:
        """Makes a temporary record an ordinary record, which the next sync sends to the server.
        Returns the record.

        If the record is an ordinary record already, the method changes nothing. Raises
        `RecordNotFound` if the record is missing or deleted.
        """
        with self._store.changeset():
            record = self[id]
            if record.sync_status != TEMPORARY:
                return record
            self._store.records.drop_temporary((self.name, id))
            return self._apply(Operation("put", self.name, id, fields=dict(record.fields)))

    def get(self, id: str, *, deleted: bool = False) -> Record | None:
        """Returns a record, or `None` if the record is missing or deleted.

        With `deleted=True`, a deleted record is returned as a tombstone, instead of `None`.
        """
        record = self._store.records.find((self.name, id))
        return record if record is not None and (deleted or not record.is_deleted) else None

    def __getitem__(self, id: str) -> Record:
        """Returns a record. Raises `RecordNotFound` if the record is missing or deleted."""
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
        """Returns a list of the records whose fields have the values given in `where`, by
        default all records.

        `where` maps field names to values. If a value is a list or a tuple, the field must
        have one of the values in the list. The value `None` matches a field that is `None`
        and a missing field. Values are compared with their JSON type: `True` differs from 1.

            tasks.query({"done": False, "list": ["home", "work"]}, order_by="-due", limit=10)

        `order_by` is a field name; a `-` before the name means descending order. Records
        with equal values, and all records if `order_by` is missing, are ordered by id. The
        result begins at the record number `offset` (from 0) and has at most `limit` records
        (default: all). With `deleted=True`, the result includes tombstones.

        Raises `ValueError` for a value in `where` that cannot be compared, such as a
        `dict`.
        """
        return self._store.records.query(
            self.name, where or {}, order_by=order_by, limit=limit, offset=offset, deleted=deleted
        )

    def _apply(self, op: Operation) -> Record:
        """Adds an operation to the open changeset. If none is open, makes a new changeset for this
        operation. Returns the record as the app sees it after the operation.

        The returned record may be a tombstone, even after a `put`: if the queue has a `delete` of
        the same record, the `put` can lose the merge against the `delete`.
        """
        with self._store.changeset():
            self._store.apply(op)
            record = self._store.records.find(op.key)
        assert record is not None
        return record


def _check_sum(name: str, value: Any, number: float) -> None:
    """Raises `NotARecord` if `number` is no number, and `BadArgument` if it cannot be added to
    `value`, the value of a field. The server would keep the value, and the number would be lost.
    """
    if not is_number(number):
        raise NotARecord(f"`{name}` is a {type(number).__name__}: increment adds numbers")
    if not is_number(value):
        raise BadArgument(
            f"`{name}` is a {type(value).__name__}, and increment adds to numbers: set the field "
            "with `update`"
        )
    if sum_of(value, number) is None:
        raise BadArgument(f"`{name}` would become infinite")
