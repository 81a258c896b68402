"""No caller holds all of anything: threads, connections, streams, downloads, bodies, committers.

In each test one caller takes its whole share of one resource, through the running service with
tokens on; then another caller is answered. tests/unit/test_group_commit.py tests the committers.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.api.http.rates import DOWNLOADS, STREAMS, LimitedRates
from foldlog.domain.access import Grant, Role
from foldlog.domain.errors import ProjectionBehind
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Projected
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.scripts.server.protocol import Connections
from tests.helpers import A, B, a_token, changeset, new_id, push_of, put, until

from .live import SENT_AT, Connection, Served, request_of, served

SPACE = "home"


class SlowStore(MemoryStore):
    """Every read of records waits until `go_on` is set, like a database under load."""

    def __init__(self, limits: Limits):
        super().__init__(limits=limits)
        self.go_on = threading.Event()
        self.is_slow = self.is_lagging = False
        self.reading = 0

    def page(self, space, query):
        if self.is_slow:
            self.reading += 1
            assert self.go_on.wait(60)
        if self.is_lagging and query.at_least:
            raise ProjectionBehind(awaited=query.at_least, projected=0, head=query.at_least)
        return super().page(space, query)

    def position(self, space):
        return Projected(0, is_halted=False) if self.is_lagging else super().position(space)


class Service:
    """A worker with tokens, and two callers: `greedy` and `modest`."""

    def __init__(self, here: Served, rates: LimitedRates, store: SlowStore):
        self.here, self.rates, self.store = here, rates, store
        self.tokens = {}
        for name, device in (("greedy", A), ("modest", B)):
            text, digest = a_token()
            store.grant(SPACE, new_id(), digest, Grant(role=Role.DEVICE, device=device), None)
            self.tokens[name] = text

    def headers(self, caller: str, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[caller]}", **more}

    def get(self, caller: str, path: str) -> httpx.Response:
        url = f"{self.here.url}/v1/spaces/{SPACE}/{path}"
        return httpx.get(url, headers=self.headers(caller), timeout=30)

    def push(self, caller: str, device: str) -> httpx.Response:
        body = {"device": device, "sent_at": SENT_AT, "changesets": [changeset(put("r", x=1))]}
        url = f"{self.here.url}/v1/spaces/{SPACE}/changesets"
        return httpx.post(url, json=body, headers=self.headers(caller), timeout=30)

    def open(self, caller: str, path: str) -> Connection:
        """Sends a request and leaves its connection open."""
        connection = Connection(self.here.port)
        connection.send(request_of(f"/v1/spaces/{SPACE}/{path}", self.headers(caller)))
        return connection


@pytest.fixture
def service_with():
    with ExitStack() as stack:

        def make(**limits) -> Service:
            chosen = Limits(**limits)
            store, rates = SlowStore(chosen), LimitedRates(chosen)
            store.push(SPACE, push_of(changeset(put("r"))))
            access = TokenAccess(store, store)
            app = create_app(
                store=store, master=store, ready=dict, limits=chosen, access=access, rates=rates
            )
            here = stack.enter_context(served(store, chosen, app))
            stack.callback(store.go_on.set)
            return Service(here, rates, store)

        yield make


def test_threads(service_with):
    """Twenty slow reads of one caller: another caller's reads and pushes are answered meanwhile."""
    service = service_with()
    service.store.is_slow = True
    with ThreadPoolExecutor(20) as clients:
        slow = [clients.submit(service.get, "greedy", "records") for _ in range(20)]
        until(lambda: service.here.resources.reading.load == 20)
        assert service.store.reading == service.here.resources.reading.size - 1
        service.store.is_slow = False
        assert service.get("modest", "records").status_code == 200
        assert service.push("modest", B).status_code == 200
        assert not any(one.done() for one in slow)
        service.store.go_on.set()
        assert {one.result().status_code for one in slow} == {200}


def test_a_client_that_disconnects_leaves_the_queue_for_threads(service_with):
    service = service_with()
    service.store.is_slow = True
    reading = service.here.resources.reading
    clients = [service.open("greedy", "records") for _ in range(10)]
    until(lambda: reading.load == 10)
    for client in clients:
        client.close()
    until(lambda: reading.load == reading.size - 1, seconds=1)
    service.store.go_on.set()
    until(lambda: reading.load == 0)


@pytest.mark.parametrize("path", ["events?wait=60&after=", "events/stream?after="])
def test_streams_and_waits(service_with, path):
    """A caller has its share of them; closing one frees it within a second."""
    service = service_with(streams_per_caller_max=3)
    path += str(service.get("modest", "events").json()["head"])
    opened = [service.open("greedy", path) for _ in range(3)]
    held = service.rates._open[STREAMS]
    until(lambda: held.held == 3)
    refused = service.get("greedy", path)
    assert (refused.status_code, refused.json()["limit"]) == (429, "streams_per_caller_max")
    other = service.open("modest", path)
    until(lambda: held.held == 4)
    for connection in (*opened, other):
        connection.close()
    until(lambda: held.held == 0, seconds=1)


def test_reads_that_wait_for_the_master_table(service_with):
    """They count as waits; a client that leaves frees its place within a second."""
    service = service_with(streams_per_caller_max=3, at_least_wait_seconds_max=60)
    service.store.is_lagging = True
    opened = [service.open("greedy", "records?at_least=9") for _ in range(3)]
    held = service.rates._open[STREAMS]
    until(lambda: held.held == 3)
    for connection in opened:
        connection.close()
    until(lambda: held.held == 0, seconds=1)


def test_downloads(service_with):
    service = service_with(downloads_per_caller_max=2, page_snapshot_records=1)
    service.store.push(SPACE, push_of(*[changeset(put(str(n), x="y" * 900_000)) for n in range(9)]))
    opened = [service.open("greedy", "snapshot") for _ in range(2)]
    held = service.rates._open[DOWNLOADS]
    until(lambda: held.held == 2)
    refused = service.get("greedy", "snapshot")
    assert (refused.status_code, refused.json()["limit"]) == (429, "downloads_per_caller_max")
    assert service.get("modest", "snapshot").status_code == 200
    for connection in opened:
        connection.close()
    until(lambda: held.held == 0, seconds=1)


def test_bodies(service_with):
    """Bodies whose end is withheld: another caller's large body is read meanwhile."""
    service = service_with(bodies_bytes_per_caller_max=300_000, bodies_bytes_max=1_000_000)
    bodies = service.here.resources.bodies
    connection = Connection(service.here.port)
    headers = {"Content-Type": "application/json", "Content-Length": "400000"}
    path = f"/v1/spaces/{SPACE}/changesets"
    connection.send(request_of(path, service.headers("greedy", **headers), "POST") + b" " * 200_000)
    until(lambda: bodies.held > 100_000)

    def push_large(caller: str, device: str) -> int:
        op = put("r", x="y" * 300_000)
        body = {"device": device, "sent_at": SENT_AT, "changesets": [changeset(op)]}
        url = f"{service.here.url}{path}"
        return httpx.post(url, json=body, headers=service.headers(caller), timeout=30).status_code

    assert push_large("greedy", A) == 429
    assert push_large("modest", B) == 200
    connection.close()
    until(lambda: bodies.held == 0, seconds=1)


def test_connections():
    """An address has its share; refusing one more leaves no count behind."""
    shares = Connections(Limits(connections_max=3, connections_per_address_max=2))
    assert [shares.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert shares.enter("192.0.2.2")
    assert not shares.enter("192.0.2.3")
    shares.leave("192.0.2.1")
    assert shares.enter("192.0.2.3")
