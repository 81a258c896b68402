"""Kinto on PostgreSQL, with two gunicorn workers. It keeps only the last state of a record."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..connection import Answer, request
from ..workload import Item
from .peer import PAGE, HttpPeer, installed, reserve_port, server

LOGIN = {"Authorization": "Basic " + base64.b64encode(b"bench:secret").decode()}
BUCKET = "/v1/buckets/bench"
COUNT = "SELECT count(*) FROM objects WHERE resource_name = 'record' AND parent_id = %s"
SETTINGS = """
[app:main]
use = egg:kinto
kinto.storage_backend = kinto.core.storage.postgresql
kinto.storage_url = {url}
kinto.storage_pool_size = 8
kinto.permission_backend = kinto.core.permission.postgresql
kinto.permission_url = {url}
kinto.permission_pool_size = 8
kinto.cache_backend = kinto.core.cache.memory
kinto.userid_hmac_secret = bench
kinto.bucket_create_principals = system.Authenticated
kinto.batch_max_requests = 100
kinto.paginate_by = 1000
kinto.storage_max_fetch_size = 10000
multiauth.policies = basicauth
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = WARNING
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(message)s
"""
APP = """
from pyramid.paster import get_app
application = get_app("kinto.ini")
"""


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]


class Kinto(HttpPeer):
    name = "Kinto"

    @contextmanager
    def running(self) -> Iterator[None]:
        command, gunicorn = installed("bin", "kinto"), installed("bin", "gunicorn")
        folder = self.bench.data / "kinto"
        folder.mkdir()
        self._url = self.bench.new_database("kinto")
        url = _sqlalchemy_url(self._url).replace("%", "%%")
        (folder / "kinto.ini").write_text(SETTINGS.format(url=url), "utf-8")
        (folder / "app.py").write_text(APP, "utf-8")
        self.port = reserve_port()
        migrate = f"{command} migrate --ini kinto.ini"
        serve = f"{gunicorn} -w 2 -k gthread --threads 8 --keep-alive 75 -b 127.0.0.1:{self.port}"
        shell = ["sh", "-c", f"{migrate} && exec {serve} app:application"]
        with server(shell, folder, self.port):
            self.ask("PUT", BUCKET, b"{}", **LOGIN)
            yield

    def make(self, place: str) -> None:
        self.ask("PUT", f"{BUCKET}/collections/{place}", b"{}", **LOGIN)

    def one(self, place: str, item: Item) -> bytes:
        path = f"{BUCKET}/collections/{place}/records/{item.record}"
        return request("PUT", path, _data(item).encode(), headers=LOGIN)

    def many(self, place: str, items: list[Item]) -> bytes:
        path = f"{BUCKET}/collections/{place}/records"
        puts = ",".join([f'{{"path":"{path}/{i.record}","body":{_data(i)}}}' for i in items])
        body = f'{{"defaults":{{"method":"PUT"}},"requests":[{puts}]}}'
        return request("POST", "/v1/batch", body.encode(), headers=LOGIN)

    def accepted(self, answer: bytes) -> int:
        return sum(part["status"] in (200, 201) for part in json.loads(answer)["responses"])

    def stored(self, place: str) -> int:
        """Counts the records in the database, because only answers to HEAD have the count."""
        parent = f"{BUCKET.removeprefix('/v1')}/collections/{place}"
        with psycopg.connect(self._url) as database:
            return int((database.execute(COUNT, (parent,)).fetchone() or (0,))[0])

    def page(self, place: str, cursor: Any, encoding: str) -> bytes:
        query = {"_sort": "last_modified", "_limit": PAGE, **({"_since": cursor} if cursor else {})}
        path = f"{BUCKET}/collections/{place}/records?{urlencode(query)}"
        return request("GET", path, encoding=encoding, headers=LOGIN)

    def read(self, answer: Answer, body: bytes, cursor: Any) -> tuple[int, Any]:
        """The cursor is `last_modified`, which is unique in the collection."""
        items = msgspec.json.decode(body, type=_Page).data
        last = json.loads(bytes(items[-1]))["last_modified"] if items else cursor
        return len(items), last


def _data(item: Item) -> str:
    return f'{{"data":{{"device":"{item.device}","counter":{item.counter},{item.fields}}}}}'


def _sqlalchemy_url(url: str) -> str:
    given = conninfo_to_dict(url)
    user, password = quote(str(given["user"])), quote(str(given.get("password", "")), safe="")
    query = urlencode({"host": given["host"], "port": given.get("port", 5432)})
    return f"postgresql+psycopg2://{user}:{password}@/{given['dbname']}?{query}"
