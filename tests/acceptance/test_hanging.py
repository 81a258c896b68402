"""What hangs, waits, or comes slowly: it is answered within a bound, and holds up nobody else."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from foldlog.api import server
from foldlog.api.app import create_app
from foldlog.api.http import threads
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.rates import LimitedRates
from foldlog.api.operations import proofs
from foldlog.domain.errors import ProjectionBehind, StorageUnavailable
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import Projected
from foldlog.infrastructure.memory.store import MemoryStore
from tests.asgi_client import asgi_client
from tests.helpers import changeset, push_of, put

from .live import Connection, Space, request_of, served, until

RUN_SECONDS_MAX = 2.0


class HangingStore(MemoryStore):
    """Every read of a range waits, as for a database that is gone without a word."""

    def __init__(self):
        super().__init__()
        self.ending = Event()

    def cached_range(self, space, query):
        return None

    def range_after(self, space, query):
        self.ending.wait(30)
        return super().range_after(space, query)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(threads, "RUN_SECONDS_MAX", RUN_SECONDS_MAX)
    store = HangingStore()
    with served(store) as here:
        yield here
        store.ending.set()


def test_when_every_thread_hangs_requests_end_and_health_is_told(hanging):
    """
    More requests than there are threads: each is answered 503 with Retry-After, those too that
    never had a thread. Meanwhile /healthz and /readyz answer at once.
    """
    with (
        httpx.Client(base_url=hanging.url, timeout=20) as http,
        ThreadPoolExecutor(10) as clients,
    ):
        began = time.monotonic()
        asked = [clients.submit(http.get, "/v1/spaces/s/events") for _ in range(10)]
        until(lambda: hanging.resources.reading.load >= 4)
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").status_code == 200
        assert not all(future.done() for future in asked)
        for answer in (future.result() for future in asked):
            assert answer.status_code == 503
            assert answer.json()["code"] == "storage-unavailable"
            assert answer.headers["Retry-After"] == "1"
        assert time.monotonic() - began < 3 * RUN_SECONDS_MAX


class LookingAccess(OpenAccess):
    """Looks up who calls, as one with tokens does."""

    async def admit(self, request, space, right, **conditions):
        await request.look_up(dict)
        return await super().admit(request, space, right, **conditions)


def app_of(store, limits=LIMITS, **parts):
    parts = {"access": OpenAccess(), **parts}
    return create_app(store=store, master=store, tree=store, ready=dict, limits=limits, **parts)


def test_whoever_pushes_is_let_in_while_every_reader_hangs(monkeypatch):
    """It takes a thread to look up who calls, but none of those that wait for what they read."""
    monkeypatch.setattr(threads, "RUN_SECONDS_MAX", RUN_SECONDS_MAX)
    store = HangingStore()
    with (
        served(store, app=app_of(store, access=LookingAccess())) as here,
        httpx.Client(base_url=here.url, timeout=20) as http,
        ThreadPoolExecutor(10) as clients,
    ):
        space = Space(here.port)
        asked = [clients.submit(http.get, "/v1/spaces/s/events") for _ in range(10)]
        until(lambda: here.resources.reading.load >= 4)
        space.push(changeset(put()))
        assert not any(future.done() for future in asked)
        store.ending.set()
        assert {future.result().status_code for future in asked} <= {404, 503}


class LaggingStore(MemoryStore):
    """Its master table stands where it is, until it may go on."""

    is_lagging = True

    def __init__(self):
        super().__init__()
        self.refusals = []

    def position(self, space):
        return Projected(0 if self.is_lagging else 1, is_halted=False)

    def snapshot(self, space, *, cursor=None, at_least=0):
        if at_least and self.is_lagging:
            self.refusals.append(at_least)
            raise ProjectionBehind(awaited=at_least, projected=0, head=at_least)
        return super().snapshot(space, cursor=cursor)


def test_whoever_waits_for_the_master_table_holds_no_thread():
    """Many more than there are threads; a read that waits for nothing goes past them."""
    store = LaggingStore()
    with (
        served(store) as here,
        httpx.Client(base_url=here.url, timeout=20) as http,
        ThreadPoolExecutor(20) as clients,
    ):
        Space(here.port, "s").push(changeset(put()))
        path = "/v1/spaces/s/snapshot"
        waiting = [clients.submit(http.get, f"{path}?at_least=1") for _ in range(20)]
        until(lambda: len(store.refusals) >= 20)
        assert http.get(path).status_code == 200
        assert not any(future.done() for future in waiting)
        store.is_lagging = False
        assert {future.result().status_code for future in waiting} == {200}


def test_a_body_that_arrives_slowly_holds_no_thread():
    """More slow bodies than there are threads; a call that needs a thread is answered."""
    with served(MemoryStore()) as here:
        Space(here.port, "s").push(changeset(put()))
        slow = [Connection(here.port) for _ in range(8)]
        for connection in slow:
            headers = {"Content-Type": "application/json", "Content-Length": "100"}
            path = "/v1/spaces/s/changesets"
            connection.send(request_of(path, headers, method="POST") + b"{")
        assert httpx.get(f"{here.url}/v1/spaces/s/records", timeout=5).status_code == 200
        slow[0].send(b" " * 99)
        assert slow[0].answer().status == 400


@pytest.mark.parametrize("length", ["Content-Length", "Transfer-Encoding"])
def test_a_body_of_text_arrives_whole_or_is_too_large(length):
    """A body that is no JSON is bounded like any other."""
    store, limits = MemoryStore(), Limits(body_bytes_max=1_000)
    with served(
        store, limits, app_of(store, limits, add_checkpoint=lambda body: f"{body!r}")
    ) as here:
        url = f"{here.url}/v1/witness/add-checkpoint"
        for body in (b"x" * 900, b"x" * 70_000):
            content = body if length == "Content-Length" else iter([body[:100], body[100:]])
            answer = httpx.post(url, content=content, timeout=5)
            if len(body) < 1_000:
                assert answer.text == f"{body!r}"
            else:
                assert answer.status_code == 413


def test_a_client_that_sends_without_end_while_it_waits_has_gone():
    """Nobody reads what it sends, so there is no end to it but this one."""
    with served(MemoryStore(), Limits(body_bytes_max=1_000)) as here:
        Space(here.port, "s").push(changeset(put()))
        endless = Connection(here.port)
        path = "/v1/spaces/s/events?after=1&wait=30"
        endless.send(request_of(path, {"Content-Length": "100000000"}) + b"x" * 50_000)
        assert endless.answer().json()["events"] == []


def test_while_many_answers_are_compressed_others_go_as_they_are(monkeypatch):
    """They would else wait for their turn, and be no smaller for whoever waits."""
    store = MemoryStore()
    store.push("s", push_of(changeset(put(text="x" * 100_000))))
    with served(store) as here:
        url = f"{here.url}/v1/spaces/s/events"
        assert httpx.get(url).headers["content-encoding"]
        monkeypatch.setattr(server, "COMPRESSING_MAX", 0)
        answer = httpx.get(url)
        assert "content-encoding" not in answer.headers
        assert answer.headers["vary"] == "Accept-Encoding"
        assert len(answer.json()["events"]) == 1


@pytest.mark.parametrize("path", ["snapshot", "export"])
def test_a_caller_has_so_many_downloads_and_no_more(path):
    """Each may hold a thread or a connection now and then, for as long as its client reads."""
    store, limits = MemoryStore(), Limits(downloads_per_caller_max=1)
    store.push("s", push_of(changeset(put())))
    http = asgi_client(app_of(store, limits, rates=LimitedRates(limits)))
    first = http.get(f"/v1/spaces/s/{path}")
    refused = http.get(f"/v1/spaces/s/{path}")
    assert (refused.status_code, refused.json["limit"]) == (429, "downloads_per_caller_max")
    assert refused.json["value"] == 1
    assert first.data
    assert http.get(f"/v1/spaces/s/{path}").status_code == 200


def test_a_download_that_fails_is_none():
    """It is let go of at once, and not when garbage is collected, which a worker does seldom."""
    limits = Limits(downloads_per_caller_max=1)
    store = MemoryStore(limits=limits)
    app = app_of(store, limits, rates=LimitedRates(limits))
    gc.disable()
    try:
        with served(store, limits, app) as here, httpx.Client(base_url=here.url) as http:
            for _ in range(3):
                assert http.get("/v1/spaces/none/snapshot").status_code == 404
                assert http.get("/v1/spaces/none/export").status_code == 404
    finally:
        gc.enable()


def test_an_export_waits_for_a_connection_rather_than_be_cut(monkeypatch):
    """Whoever audits would else take what is missing for what is kept from him."""
    monkeypatch.setattr(proofs, "TRY_AGAIN_SECONDS", 0)

    class Busy(MemoryStore):
        refusals = 3

        def entries(self, space, *, after=0, through):
            yield from super().entries(space, after=after, through=after + 1)
            if self.refusals:
                self.refusals -= 1
                raise StorageUnavailable
            yield from super().entries(space, after=after + 1, through=through)

    store = Busy()
    for _ in range(9):
        store.push("s", push_of(changeset(put())))
    http = asgi_client(app_of(store))
    assert len(http.get("/v1/spaces/s/export").data.splitlines()) == 10


def test_a_slow_change_is_answered_with_its_outcome(monkeypatch):
    """A definition takes longer than a read may: it is 200, and no stored change is refused."""
    monkeypatch.setattr(threads, "RUN_SECONDS_MAX", 0.2)
    began, go_on = Event(), Event()

    class Slow(MemoryStore):
        def define(self, *args, **kwargs):
            began.set()
            assert go_on.wait(30)
            return super().define(*args, **kwargs)

    store = Slow()
    store.push("s", push_of(changeset(put())))
    token = "correct-horse-battery"
    http = asgi_client(app_of(store, access=OpenAccess(token)))
    headers = {"Authorization": f"Bearer {token}"}
    url = "/v1/admin/spaces/s/collections/tasks"
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(http.put, url, json={"schema": {}}, headers=headers)
        assert began.wait(10)
        time.sleep(0.5)  # longer than the limit of reads
        assert not asked.done()
        go_on.set()
        assert asked.result().status_code == 200


def test_a_stream_s_client_that_leaves_while_it_waits_for_a_thread_is_no_error(lines):
    """The log has no error: clients come and go, above all under load."""

    class Slow(MemoryStore):
        is_slow = False

        def __init__(self):
            super().__init__()
            self.go_on = Event()

        def cached_range(self, space, query):
            return None if self.is_slow else super().cached_range(space, query)

        def range_after(self, space, query):
            if self.is_slow:
                assert self.go_on.wait(30)
            return super().range_after(space, query)

    store = Slow()
    with served(store) as here:
        space = Space(here.port, "s")
        space.push(changeset(put()))
        streams = [space.stream("after=1") for _ in range(8)]
        until(lambda: here.is_waited_for(8))
        store.is_slow = True
        space.push(changeset(put()))
        until(lambda: here.resources.reading.load == 8)
        for stream in streams:
            stream.close()
        until(lambda: here.resources.reading.load == here.resources.reading.size - 1)
        store.go_on.set()
        until(here.is_idle)
    assert not [line for line in lines if line["log_level"] == "error"]
