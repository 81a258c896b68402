"""The expected answers about history: the oracle folds the log up to each seq."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from foldlog.domain.history import NOW, Point
from foldlog.domain.merge import Key
from foldlog.domain.ports import AsOfQuery, DiffQuery, EventStore, HistoryQuery

from .helpers import PAGES_MAX, pull_all
from .oracle import NOTHING, Oracle, canonical

Json = dict[str, Any]


class Past:
    """The state at each seq of a log."""

    def __init__(self, store: EventStore, space: str):
        self.events: list[Json] = [json.loads(event) for event in pull_all(store, space)]
        self.head = len(self.events)
        oracle = Oracle()
        self._moments: list[dict[Key, str]] = [{}]
        self.losses: list[list[Json]] = [[]]
        for event in self.events:
            known = len(oracle.ledger)
            oracle.fold(event)
            self._moments.append({k: json.dumps(v) for k, v in oracle.views().items()})
            self.losses.append(oracle.ledger[known:])

    def views(self, seq: int) -> dict[Key, Json]:
        """The records at a seq, with tombstones."""
        return {key: json.loads(view) for key, view in self._moments[seq].items()}

    def live(self, seq: int) -> dict[Key, Json]:
        return {key: view for key, view in self.views(seq).items() if not view["is_deleted"]}

    def made(self, key: Key) -> int:
        """The first seq at which the record exists."""
        return next(seq for seq, moment in enumerate(self._moments) if key in moment)

    def as_of(self, seq: int, collection: str | None = None) -> list[Json]:
        live = self.live(seq)
        return [
            live[key]
            for key in sorted(live, key=lambda key: (key[0], self.made(key), key[1]))
            if collection in (None, key[0])
        ]

    def touches(self, key: Key) -> list[int]:
        return [
            event["seq"]
            for event in self.events
            if event["kind"] == "changeset"
            and event["verdict"] == "stored"
            and any((op["collection"], op["id"]) == key for op in event["ops"])
            and key in self._moments[event["seq"]]
        ]

    def history(self, key: Key) -> list[Json]:
        versions = []
        for seq in self.touches(key):
            event = self.events[seq - 1]
            now = self.views(seq)[key]
            was = self.views(seq - 1).get(key, {"fields": {}})
            lost = [x for x in self.losses[seq] if (x["collection"], x["id"]) == key]
            versions.append(
                {
                    "seq": seq,
                    "changeset": event["id"],
                    "device": event["device"],
                    "made_at": event["made_at"],
                    "received_at": event["received_at"],
                    "is_deleted": now["is_deleted"],
                    "changed": changed(was["fields"], now["fields"]),
                    "lost": sorted(lost, key=canonical),
                }
            )
        return versions

    def diff(self, start: int, to: int, collection: str | None = None) -> list[Json]:
        found = []
        before, after = self.live(start), self.live(to)
        for key in before.keys() | after.keys():
            was, now = before.get(key), after.get(key)
            differs = changed((was or {"fields": {}})["fields"], (now or {"fields": {}})["fields"])
            if (differs or (was is None) != (now is None)) and collection in (None, key[0]):
                last = max(seq for seq in self.touches(key) if seq <= to)
                told = {"before": was, "after": now, "changed": differs}
                found.append((last, key, {"collection": key[0], "id": key[1], **told}))
        return [told for *_, told in sorted(found, key=lambda item: item[:2])]


def changed(was: Json, now: Json) -> Json:
    names = [
        n
        for n in {**was, **now}
        if canonical(was.get(n, NOTHING)) != canonical(now.get(n, NOTHING))
    ]
    return {
        name: {
            **({"from": was[name]} if name in was else {}),
            **({"to": now[name]} if name in now else {}),
        }
        for name in names
    }


def all_as_of(table: Any, space: str, moment: Point, *, limit: int = 100, **query: Any) -> Any:
    """Reads all pages of a moment. Returns its seq and the live records."""
    found: list[Json] = []
    cursor, seqs = None, set()
    for _ in range(PAGES_MAX):
        page = table.as_of(space, AsOfQuery(moment, limit, cursor=cursor, **query))
        found += map(msgspec.json.decode, page.records)
        seqs.add(page.as_of)
        cursor = page.cursor
        if cursor is None:
            assert len(seqs) == 1
            return seqs.pop(), found
        assert page.records, "a page with another after it is not empty"
    raise AssertionError(f"still more records after {PAGES_MAX} pages")


def whole_history(table: Any, space: str, key: Key, *, limit: int = 100, **query: Any) -> Any:
    found: list[Json] = []
    cursor = None
    for _ in range(PAGES_MAX):
        page = table.history(space, key, HistoryQuery(limit, cursor=cursor, **query))
        found += map(msgspec.json.decode, page.versions)
        cursor = page.cursor
        if cursor is None:
            return [v | {"lost": sorted(v["lost"], key=canonical)} for v in found]
        assert page.versions, "a page with another after it is not empty"
    raise AssertionError(f"still more versions after {PAGES_MAX} pages")


def whole_diff(
    table: Any, space: str, start: Point, to: Point = NOW, *, limit: int = 100, **query: Any
) -> Any:
    found: list[Json] = []
    cursor = None
    for _ in range(PAGES_MAX):
        page = table.diff(space, DiffQuery(start, to, limit, cursor=cursor, **query))
        assert len(page.differences) <= limit
        found += map(msgspec.json.decode, page.differences)
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError(f"still more differences after {PAGES_MAX} pages")


def texts(documents: list[Json]) -> list[str]:
    return list(map(canonical, documents))
