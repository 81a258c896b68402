"""Compares the records that a service answers with a fold of the events."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import msgspec

from foldlog.domain.audit import Evidence
from foldlog.domain.json_reader import decode_value
from foldlog.domain.merge import Record, view_of

from .checks import Audited, Check
from .folded import Folded

#: Records that later events have changed, of which so many are read.
LATER_RECORDS_MAX = 100_000


class RecordsReader(Protocol):
    """Reads the records and the log of a running service."""

    def records(self, at_least: int) -> Iterator[dict[str, Any]]:
        """Yields all records as JSON objects, tombstones included. They include the changes of all
        events up to seq `at_least`."""

    def evidence(self, through: int) -> Iterable[list[Evidence]]:
        """Yields the events up to seq `through` in batches."""

    def head_now(self) -> int:
        """Returns the present head, which may be later than the head of the verification."""


class RecordsCheck(Check):
    """Compares the records of a service with those that the events up to `through` make.

    A record that was changed by an event after the last verified one is left out.
    """

    wants_events = True

    def __init__(self, reader: RecordsReader, through: int):
        self._reader = reader
        self._through = through
        self._folded = Folded()
        self._read = hashlib.sha256()
        self._left_out = ""

    def add(self, batch: Audited) -> None:
        self._folded.add(batch.evidence)
        for state, _, _ in batch.evidence:
            self._read.update(state)

    def finish(self) -> Iterator[str]:
        if self._folded.to_skip:
            seqs = ", ".join(map(str, sorted(self._folded.to_skip)))
            yield f"skipped, as events say: seq {seqs}"
            self._fold_again()
        if self._folded.failed is not None:
            raise self._folded.failed
        count = self._compare()
        if not self.wrong:
            yield f"the master table is the fold of these events: {count} records"
        if self._left_out:
            yield f"not compared: {self._left_out}"

    def _fold_again(self) -> None:
        """Folds all events a second time, without the skipped ones. The first reading of the log
        finds out which events were skipped."""
        self._folded, again = Folded(self._folded.to_skip), hashlib.sha256()
        for events in self._reader.evidence(self._through):
            self._folded.add(events)
            for state, _, _ in events:
                again.update(state)
        if again.digest() != self._read.digest():
            self.note("the second reading of the log returned other events")

    def _compare(self) -> int:
        """Compares all records, and returns their number."""
        records = self._folded.records
        count, later, latest = 0, 0, (0, ("", ""))
        for record in self._reader.records(self._through):
            key = _key_of(record)
            if key is None:
                self.note(f"the master table has a record without a key or a seq: {_short(record)}")
                return count
            folded = records.pop(key)
            count += 1
            latest = max(latest, (record["seq"], key))
            if record["seq"] > self._through:
                later += 1  # a later event has changed it
                if later == LATER_RECORDS_MAX:
                    self._left_out = "the other records that later events have changed"
                    return count
            elif self.note(_difference(key, folded, record)):
                return count
        for missing in records:
            if missing.exists:
                self.note(f"the master table lacks {(missing.collection, missing.id)}")
        if latest[0] > self._through and latest[0] > self._reader.head_now():
            self.note(
                f"the master table has {latest[1]} with seq {latest[0]}, which is beyond head"
            )
        return count


def _as_json(record: Record) -> Any:
    return decode_value(msgspec.json.encode(view_of(record)))


def _key_of(record: dict[str, Any]) -> tuple[str, str] | None:
    """Returns the key of a record of a service, or `None` if the record is malformed."""
    collection, id, seq = (record.get(name) for name in ("collection", "id", "seq"))
    if type(collection) is str and type(id) is str and type(seq) is int:
        return collection, id
    return None


def _difference(key: tuple[str, str], folded: Record | None, found: dict[str, Any]) -> str | None:
    made = {} if folded is None else _as_json(folded)
    if made == found:
        return None
    name = next((name for name in made | found if found.get(name) != made.get(name)), "fields")
    return (
        f"the master table has {key} otherwise than the events make it: {name} is "
        f"{_short(found.get(name))}, expected {_short(made.get(name))}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
