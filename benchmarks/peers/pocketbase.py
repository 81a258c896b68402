"""PocketBase, one binary on SQLite. It keeps the last state, and commits before a disk flush."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import msgspec

from ..connection import Answer, request
from ..workload import Item
from .peer import PAGE, HttpPeer, installed, reserve_port, server

LOGIN = ("bench@example.org", "secret-secret")
SETTINGS = {"batch": {"enabled": True, "maxRequests": 100, "timeout": 60}, "logs": {"maxDays": 0}}
#: another pattern of ids makes each insert scan the whole table
ID = {"name": "id", "type": "text", "primaryKey": True, "required": True, "system": True}
ID |= {"min": 15, "max": 32, "pattern": "^[a-z0-9]+$", "autogeneratePattern": "[a-z0-9]{15}"}
FIELDS = {"device": "text", "counter": "number", "title": "text", "priority": "number"}
FIELDS |= {"estimate": "number", "done": "bool", "notes": "text"}
UPDATED = {"name": "updated", "type": "autodate", "onCreate": True, "onUpdate": True}
RULES = dict.fromkeys(("listRule", "viewRule", "createRule", "updateRule"), "")


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]


class PocketBase(HttpPeer):
    name = "PocketBase"

    @contextmanager
    def running(self) -> Iterator[None]:
        command = installed("bin", "pocketbase")
        folder = self.bench.data / "pocketbase"
        where = ["--dir", str(folder / "data"), "--migrationsDir", str(folder / "migrations")]
        subprocess.run(
            [command, "superuser", "upsert", *LOGIN, *where], check=True, capture_output=True
        )
        self.port = reserve_port()
        serve = [command, "serve", "--http", f"127.0.0.1:{self.port}", "--automigrate=0", *where]
        with server(serve, folder, self.port):
            path = "/api/collections/_superusers/auth-with-password"
            login = json.dumps({"identity": LOGIN[0], "password": LOGIN[1]}).encode()
            self._token = json.loads(self.ask("POST", path, login).body)["token"]
            self._admin("PATCH", "/api/settings", SETTINGS)
            yield

    def _admin(self, method: str, path: str, body: object) -> None:
        self.ask(method, path, json.dumps(body).encode(), Authorization=self._token)

    def make(self, place: str) -> None:
        fields = [ID, *({"name": name, "type": kind} for name, kind in FIELDS.items()), UPDATED]
        index = f"CREATE INDEX {place}_by_updated ON {place} (updated, id)"
        about = {"name": place, "type": "base", **RULES, "fields": fields, "indexes": [index]}
        self._admin("POST", "/api/collections", about)

    def one(self, place: str, item: Item) -> bytes:
        return request("POST", f"/api/collections/{place}/records", _record(item).encode())

    def many(self, place: str, items: list[Item]) -> bytes:
        url = f"/api/collections/{place}/records"
        parts = [f'{{"method":"PUT","url":"{url}","body":{_record(item)}}}' for item in items]
        return request("POST", "/api/batch", f'{{"requests":[{",".join(parts)}]}}'.encode())

    def accepted(self, answer: bytes) -> int:
        return sum(part["status"] == 200 for part in json.loads(answer))

    def stored(self, place: str) -> int:
        path = f"/api/collections/{place}/records?perPage=1&fields=id"
        return int(json.loads(self.ask("GET", path).body)["totalItems"])

    def page(self, place: str, cursor: Any, encoding: str) -> bytes:
        query = {"perPage": PAGE, "skipTotal": 1, "sort": "updated,id"}
        if cursor:
            updated, last = cursor
            query["filter"] = f"updated>='{updated}'&&(updated>'{updated}'||id>'{last}')"
        path = f"/api/collections/{place}/records?{urlencode(query)}"
        return request("GET", path, encoding=encoding)

    def read(self, answer: Answer, body: bytes, cursor: Any) -> tuple[int, Any]:
        items = msgspec.json.decode(body, type=_Page).items
        if not items:
            return 0, cursor
        last = json.loads(bytes(items[-1]))
        return len(items), (last["updated"], last["id"])


def _record(item: Item) -> str:
    record = item.record.replace("-", "")
    return f'{{"id":"{record}","device":"{item.device}","counter":{item.counter},{item.fields}}}'
