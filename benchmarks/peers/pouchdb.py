"""pouchdb-server: the protocol of CouchDB, on LevelDB, which commits before a disk flush.

A CouchDB client pulls `_changes` with `include_docs`: the last state of each document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from ..connection import Answer, request
from ..workload import Item
from .peer import PAGE, HttpPeer, installed, reserve_port, server


class _Page(msgspec.Struct):
    results: list[msgspec.Raw]
    last_seq: int


class PouchDB(HttpPeer):
    name = "pouchdb-server"

    @contextmanager
    def running(self) -> Iterator[None]:
        command = installed("node_modules", ".bin", "pouchdb-server")
        folder = self.bench.data / "pouchdb"
        folder.mkdir()
        (folder / "config.json").write_text('{"log":{"level":"none"}}', "utf-8")
        self.port = reserve_port()
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)]
        options = ["--config", str(folder / "config.json"), "--no-stdout-logs"]
        with server([command, *where, *options], folder, self.port):
            yield

    def make(self, place: str) -> None:
        self.ask("PUT", f"/{place}")

    def one(self, place: str, item: Item) -> bytes:
        return request("PUT", f"/{place}/{item.record}", _document(item).encode())

    def many(self, place: str, items: list[Item]) -> bytes:
        documents = ",".join([_document(item) for item in items])
        return request("POST", f"/{place}/_bulk_docs", f'{{"docs":[{documents}]}}'.encode())

    def accepted(self, answer: bytes) -> int:
        return sum("ok" in part for part in json.loads(answer))

    def stored(self, place: str) -> int:
        return int(json.loads(self.ask("GET", f"/{place}").body)["doc_count"])

    def page(self, place: str, cursor: Any, encoding: str) -> bytes:
        query = f"since={cursor or 0}&limit={PAGE}&include_docs=true"
        return request("GET", f"/{place}/_changes?{query}", encoding=encoding)

    def read(self, answer: Answer, body: bytes, cursor: Any) -> tuple[int, Any]:
        page = msgspec.json.decode(body, type=_Page)
        return len(page.results), page.last_seq


def _document(item: Item) -> str:
    return (
        f'{{"_id":"{item.record}","device":"{item.device}","counter":{item.counter},{item.fields}}}'
    )
