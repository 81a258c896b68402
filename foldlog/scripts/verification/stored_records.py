"""Keeps folded records together with the form in which the master table stores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from foldlog.domain.merge import Key, Record
from foldlog.domain.values import LoggedValue
from foldlog.infrastructure.postgres.master.stored_form import Part, Place, StoredRecord

from .disk_backed import IN_MEMORY_MAX, DiskBacked


class _Kept(msgspec.Struct):
    """A record with all its values, and what its rows leave out."""

    record: Record
    places: dict[str, Place]
    parts: list[Part]


class _InMemory:
    """The values of these records are in memory, so none is read from the log."""

    def load(self, value: LoggedValue) -> Any:
        raise AssertionError("the value is in memory")


IN_MEMORY = _InMemory()


class StoredRecords:
    """A mapping of record keys to records in their stored form. Most are in a temporary file if
    there are many."""

    def __init__(self, *, in_memory_max: int = IN_MEMORY_MAX) -> None:
        self._kept = DiskBacked[Key, _Kept](2, _Kept, in_memory_max=in_memory_max)

    def get(self, key: Key) -> StoredRecord | None:
        kept = self._kept.get(key)
        return None if kept is None else _stored(kept)

    def __setitem__(self, key: Key, record: StoredRecord) -> None:
        logged = {n: v for n, v in record.fields.items() if type(v) is LoggedValue}
        fields = {n: v.load() if type(v) is LoggedValue else v for n, v in record.fields.items()}
        members = {name: getattr(record, name) for name in Record.__struct_fields__}
        plain = Record(**members | {"fields": fields})
        places = {name: (value.seq, value.op, value.size) for name, value in logged.items()}
        self._kept[key] = _Kept(plain, places, list(record.parts))

    def add_bytes(self, count: int) -> None:
        self._kept.add_bytes(count)

    def items(self) -> Iterator[tuple[Key, StoredRecord]]:
        return ((key, _stored(kept)) for key, kept in self._kept.items())


def _stored(kept: _Kept) -> StoredRecord:
    record = kept.record
    fields = dict(record.fields)
    for name, (seq, op, size) in kept.places.items():
        fields[name] = LoggedValue(IN_MEMORY, seq, op, name, size, fields[name])
    members = {name: getattr(record, name) for name in Record.__struct_fields__}
    return StoredRecord(**members | {"fields": fields}, parts=tuple(kept.parts))
