"""A second, simple and slow implementation of the merge rule, written from its specification.

It shares no code with `foldlog.domain`, and reads events as plain JSON. Each write keeps *all*
writes that were merged into it, so "has seen" means that each of them was seen. The real fold keeps
one number instead, `other`.

Ambiguous places of the specification are read like this:

* A delete merges onto the record's last delete, even if the record was made anew in between.
* `seq` and `last_modified` move with each operation that moves the visible state: the fields, by
  typed equality, and whether it is deleted. An equal value leaves both.
* `created_seq` is the seq at which the record was made, and moves when it is made anew.
* A delete of an unknown record leaves no tombstone, but counts as a touch.
* A delete removes the writes of the fields.
* `record-erased` makes a tombstone that is independent of the earlier record: as if that event
  alone, of no device, had made, deleted and touched the record.
* An unset field has a write but no value. An unset that loses is in the ledger, also without a
  value.
* An operation that makes a record larger than the limit is undone as a whole, with its ledger
  entries, and each of its values is then in the ledger.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

Key = tuple[str, str]
NOTHING: Any = object()  # marks a missing value, because `None` is a value
RECORD_SIZE_MAX = 16 * 2**20


class Stamp(NamedTuple):
    """One operation's part in a write."""

    seq: int
    device: str | None  #: `None` for an erasure
    time: int


Write = list[Stamp]  #: all stamps that were merged together, the newest last


def canonical(value: Any) -> str:
    """Values are equal when these texts are: 1 is 1.0, `true` is not 1, objects have no order."""

    def plain(part: Any) -> Any:
        if isinstance(part, bool) or part is None or isinstance(part, str):
            return part
        if isinstance(part, list):
            return [plain(item) for item in part]
        if isinstance(part, dict):
            return {name: plain(item) for name, item in part.items()}
        return float(part) + 0.0  # -0.0 becomes 0.0

    return "nothing" if value is NOTHING else json.dumps(plain(value), sort_keys=True)


def equal(a: Any, b: Any) -> bool:
    return canonical(a) == canonical(b)


def time_of(write: Write) -> int:
    return max(stamp.time for stamp in write)


def other_of(write: Write) -> int:
    """The last seq in a write that another device than the write's own contributed."""
    return max((stamp.seq for stamp in write if stamp.device != write[-1].device), default=0)


def weight(value: Any) -> int:
    """The size of a value: 4 for it and for each value and member in it, and the bytes of texts."""
    inner = 0
    if isinstance(value, str):
        inner = len(value.encode())
    elif isinstance(value, list):
        inner = sum(weight(item) for item in value)
    elif isinstance(value, dict):
        inner = sum(weight(name) + weight(item) for name, item in value.items())
    return 4 + inner


@dataclass
class Row:
    """A record with all that happened to it."""

    fields: dict[str, Any] = field(default_factory=dict)
    writes: dict[str, Write] = field(default_factory=dict)
    last_delete: Write | None = None
    made_at: int = 0
    is_deleted: bool = False
    moved_at: int = 0
    moved_when: str = ""
    touches: list[Stamp] = field(default_factory=list)

    def visible(self) -> tuple[Any, ...]:
        return self.made_at > 0, self.is_deleted, canonical(self.fields)

    @property
    def size(self) -> int:
        names = sum(64 + len(name.encode()) for name in self.writes)
        return names + sum(weight(value) for value in self.fields.values())

    def touched_by_other(self, device: str) -> int:
        return max((touch.seq for touch in self.touches if touch.device != device), default=0)

    def view(self, key: Key) -> dict[str, Any]:
        return {
            "collection": key[0],
            "id": key[1],
            "fields": self.fields,
            "is_deleted": self.is_deleted,
            "last_modified": self.moved_when,
            "seq": self.moved_at,
            "created_seq": self.made_at,
        }


@dataclass
class Oracle:
    """Folds events, which are JSON objects in seq order, into rows and a ledger."""

    rows: dict[Key, Row] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    size_max: int = field(default_factory=lambda: RECORD_SIZE_MAX)

    def fold(self, *events: dict[str, Any]) -> Oracle:
        for event in events:
            if event["kind"] == "changeset" and event["verdict"] == "stored":
                for op in event["ops"]:
                    if "erased" not in op:
                        self._operation(event, op)
            if event["kind"] == "record-erased":
                self._erase(event)
        return self

    def views(self) -> dict[Key, dict[str, Any]]:
        """The records as apps read them, with tombstones."""
        return {key: row.view(key) for key, row in sorted(self.rows.items()) if row.made_at}

    def _erase(self, event: dict[str, Any]) -> None:
        """Replaces the record by a tombstone of the erasure."""
        key = event["body"]["collection"], event["body"]["id"]
        at = datetime.fromisoformat(event["received_at"])
        stamp = Stamp(event["seq"], None, round(at.timestamp() * 1000))
        self.rows[key] = Row(
            last_delete=[stamp],
            made_at=event["seq"],
            is_deleted=True,
            moved_at=event["seq"],
            moved_when=event["received_at"],
            touches=[stamp],
        )
        self.ledger = [c for c in self.ledger if (c["collection"], c["id"]) != key]

    def _operation(self, event: dict[str, Any], op: dict[str, Any]) -> None:
        key = op["collection"], op["id"]
        row = self.rows.setdefault(key, Row())
        before, entries = copy.deepcopy(row), len(self.ledger)
        {"put": self._put, "add": self._add, "delete": self._delete}[op["op"]](row, event, op)
        if row.size > max(self.size_max, before.size):
            row = self.rows[key] = before
            del self.ledger[entries:]
            self._lose_to_limit(row, event, op)
        elif row.visible() != before.visible():
            row.moved_at, row.moved_when = event["seq"], event["received_at"]
        row.touches.append(_stamp(event))

    def _lose_to_limit(self, row: Row, event: dict[str, Any], op: dict[str, Any]) -> None:
        never = [Stamp(0, None, 0)]
        for name, value in _values(op).items():
            stands = row.fields.get(name, NOTHING), row.writes.get(name, never)
            self._lose(event, op, name, "too-large", (value, [_stamp(event)]), stands)

    def _put(self, row: Row, event: dict[str, Any], op: dict[str, Any]) -> None:
        values = _values(op)
        if self._beaten_by_delete(row, event, op, values):
            return
        _make(row, event)
        for name, new in values.items():
            old, write = row.fields.get(name, NOTHING), row.writes.get(name)
            mine, stands = [_stamp(event)], True
            if write is not None and not _has_seen(event, write):
                stands = event["time"] >= time_of(write)
                hands = [(old, write), (new, mine)]
                lost, won = hands if stands else reversed(hands)
                if not equal(old, new):
                    self._lose(event, op, name, "concurrent", lost, won)
            if stands:
                row.fields.pop(name, None)
                if new is not NOTHING:
                    row.fields[name] = new
                row.writes[name] = mine

    def _add(self, row: Row, event: dict[str, Any], op: dict[str, Any]) -> None:
        if self._beaten_by_delete(row, event, op, op["fields"]):
            return
        _make(row, event)
        for name, number in op["fields"].items():
            old, write = row.fields.get(name, 0), row.writes.get(name, [])
            total = math.nan
            if isinstance(old, int | float) and not isinstance(old, bool):
                total = float(old) + float(number)
            if math.isfinite(total):
                row.fields[name] = total
                row.writes[name] = [*write, _stamp(event)]
            else:
                mine = [_stamp(event)]
                self._lose(event, op, name, "not-addable", (number, mine), (old, write))

    def _delete(self, row: Row, event: dict[str, Any], op: dict[str, Any]) -> None:
        if not row.made_at:
            return
        mine = [_stamp(event)]
        for name, value in sorted(row.fields.items()):
            if not _has_seen(event, row.writes[name]):
                lost = (value, row.writes[name])
                self._lose(event, op, name, "delete", lost, (NOTHING, mine))
        row.last_delete = [*(row.last_delete or []), *mine]
        row.is_deleted, row.fields, row.writes = True, {}, {}

    def _beaten_by_delete(
        self, row: Row, event: dict[str, Any], op: dict[str, Any], values: dict[str, Any]
    ) -> bool:
        if row.last_delete is None or _has_seen(event, row.last_delete):
            return False
        for name, value in values.items():
            lost = (value, [_stamp(event)])
            self._lose(event, op, name, "deleted", lost, (NOTHING, row.last_delete))
        return True

    def _lose(
        self,
        event: dict[str, Any],
        op: dict[str, Any],
        name: str,
        rule: str,
        lost: tuple[Any, Write],
        won: tuple[Any, Write],
    ) -> None:
        self.ledger.append(
            {
                "seq": event["seq"],
                "op": op["op"],
                "collection": op["collection"],
                "id": op["id"],
                "field": name,
                "rule": rule,
                "lost": _hand(*lost),
                "won": _hand(*won),
            }
        )


def _values(op: dict[str, Any]) -> dict[str, Any]:
    return {**op.get("fields", {}), **dict.fromkeys(op.get("unset", []), NOTHING)}


def _stamp(event: dict[str, Any]) -> Stamp:
    return Stamp(event["seq"], event["device"], event["time"])


def _has_seen(event: dict[str, Any], write: Write) -> bool:
    """Whether the changeset's author had seen or made all parts of the write."""
    return all(s.seq <= event["base"] or s.device == event["device"] for s in write)


def _make(row: Row, event: dict[str, Any]) -> None:
    if not row.made_at or row.is_deleted:
        row.fields, row.writes = {}, {}
        row.is_deleted, row.made_at = False, event["seq"]


def _hand(value: Any, write: Write) -> dict[str, Any]:
    there = {} if value is NOTHING else {"value": value}
    return {**there, "seq": write[-1].seq, "device": write[-1].device}
