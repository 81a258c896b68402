"""Foldlog, under exactly the same load as the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from ..cells import STORED
from ..connection import Answer, request
from ..workload import Item, push_of
from .peer import PAGE, HttpPeer


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    through: int
    mark: str


class Foldlog(HttpPeer):
    name = "Foldlog"
    is_strict = True

    @contextmanager
    def running(self) -> Iterator[None]:
        self.port = self.bench.port
        yield

    def make(self, place: str) -> None:
        pass  # the first push creates the space

    def one(self, place: str, item: Item) -> bytes:
        return self.many(place, [item])

    def many(self, place: str, items: list[Item]) -> bytes:
        return request("POST", f"/v1/spaces/{place}/changesets", push_of(items))

    def accepted(self, answer: bytes) -> int:
        return answer.count(STORED)

    def stored(self, place: str) -> int:
        return self.bench.stored(place)

    def page(self, place: str, cursor: Any, encoding: str) -> bytes:
        after, mark = cursor or (0, "")
        query = f"after={after}&limit={PAGE}" + (f"&mark={mark}" if mark else "")
        return request("GET", f"/v1/spaces/{place}/events?{query}", encoding=encoding)

    def read(self, answer: Answer, body: bytes, cursor: Any) -> tuple[int, Any]:
        page = msgspec.json.decode(body, type=_Page)
        return len(page.events), (page.through, page.mark)
