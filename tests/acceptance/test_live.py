"""Long polls and streams, and the event loop's door, over real sockets."""

from __future__ import annotations

import gc
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.rates import LimitedRates
from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.limits import Limits
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.scripts.server import protocol, web
from foldlog.scripts.server import sockets as listening
from foldlog.scripts.server.process import environment, is_ready, reserve_port
from tests.helpers import A, B, changeset, new_id, push_of, put

from .live import SENT_AT, Connection, Space, Stream, request_of, served, until

MIB = 2**20


@pytest.fixture(scope="module")
def _live():
    with served(MemoryStore()) as here:
        yield here


@pytest.fixture
def live(_live):
    """A worker on a store in memory, to whom nobody is connected yet."""
    yield _live
    Connection.close_all()
    until(_live.is_idle)


@pytest.fixture
def space(live):
    return Space(live.port)


@pytest.fixture
def live_with():
    """Makes a worker with other limits, or another store."""
    opened = []

    def make(store=None, **limits):
        of_it = Limits(**limits)
        context = served(store or MemoryStore(limits=of_it), of_it)
        opened.append(context)
        return context.__enter__()

    yield make
    for context in opened:
        context.__exit__(None, None, None)


def numbered(count: int, collection: str = "tasks") -> list[dict]:
    return [changeset(put(new_id(), collection, n=n)) for n in range(count)]


# The stream


def test_a_message_is_the_page_that_a_pull_would_get(store):
    """
    The same document, byte for byte; its id is the cursor after it. And then it goes on.
    """
    with served(store) as here:
        space = Space(here.port)
        space.push(*numbered(4), changeset(put(title="Grüße 🐘\n\r\x00", price=1.0)))
        stream = space.stream(f"limit=2&device={A}")
        after = 0
        for through in (2, 4, 5):
            page = space.http.get(f"events?limit=2&device={A}&after={after}")
            assert stream.next() == (through, "message", page.content)
            after = page.json()["through"]
        assert stream.retry_ms == 1_000

        space.push(changeset(put("late")), device=B)
        assert stream.next() == (6, "message", space.http.get("events?after=5").content)
        stream.close()


def test_a_stream_is_for_nobody_to_hold_back(space):
    """
    Neither a proxy's buffer nor a compressor's, whatever the client can read.
    """
    space.push(*numbered(50))
    stream = space.stream(headers={"Accept-Encoding": "zstd, br, gzip"})
    assert stream.head.headers["content-type"] == "text/event-stream"
    assert stream.head.headers["x-accel-buffering"] == "no"
    assert stream.head.headers["cache-control"] == "private, no-store"
    assert "content-encoding" not in stream.head.headers
    assert stream.seqs(50) == list(range(1, 51))


def test_a_last_event_id_goes_on_without_gap_or_double(space):
    """
    It is what the client saw last, so it wins over what the URL says, which never changes.
    """
    space.push(*numbered(6))
    first = space.stream("limit=2")
    seen = first.next()
    first.abort()
    again = space.stream("limit=2", headers={"Last-Event-ID": str(seen.id)})
    assert seen.seqs + again.seqs(4) == [1, 2, 3, 4, 5, 6]

    other = space.stream(f"after=99&mark={'0' * 16}", headers={"Last-Event-ID": "4"})
    assert other.seqs(2) == [5, 6]


@pytest.mark.parametrize("id", ["x", "-1", "1.0", "1, 2", "9007199254740992", "١"])
def test_a_strange_last_event_id_is_refused(space, id):
    """
    Beginning anywhere else would lose events, or double them.
    """
    space.push(changeset())
    problem = space.stream(headers={"Last-Event-ID": id}).head
    assert problem.status == 400
    assert [error["header"] for error in problem.json()["errors"]] == ["Last-Event-ID"]


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("after=9", {}, 409, "log-behind"),
        ("", {"Last-Event-ID": "9"}, 409, "log-behind"),
        (f"after=1&mark={'0' * 16}", {}, 409, "log-changed"),
        ("wait=5", {}, 400, "invalid-request"),
        ("after=x", {}, 400, "invalid-request"),
    ],
)
def test_a_stream_is_refused_before_it_begins(space, query, headers, status, code):
    """
    As any other request: a status, and a problem document.
    """
    space.push(changeset())
    head = space.stream(query, headers=headers).head
    assert (head.status, head.json()["code"]) == (status, code)
    assert head.headers["content-type"] == "application/problem+json"


def test_there_is_no_stream_of_an_unknown_space(live):
    head = Space(live.port).stream().head
    assert (head.status, head.json()["code"]) == (404, "unknown-space")
    until(live.is_idle)


def test_a_filtered_stream_moves_its_cursor(space):
    """
    Else whoever connects again would have all that was passed over looked at again.
    """
    space.push(*numbered(1, "a"), *numbered(3, "b"))
    stream = space.stream("collections=a")
    assert (stream.next().id, 1) == (4, 1)
    space.push(*numbered(2, "b"))
    moved = stream.next()
    assert (moved.id, moved.seqs) == (6, [])
    space.push(*numbered(1, "a"))
    assert stream.seqs(1) == [7]


def test_heartbeats_come_and_the_stream_ends_in_good_order(live_with):
    """
    The last chunk is said, and the connection can be used again.
    """
    here = live_with(stream_heartbeat_seconds=0.05, stream_seconds_max=0.4)
    space = Space(here.port)
    space.push(changeset())
    began = time.monotonic()
    stream = space.stream("after=1")
    messages = stream.all()
    assert 0.3 < time.monotonic() - began < 10
    assert len(messages) >= 4 and {m.kind for m in messages} == {"comment"}
    assert stream.head.is_whole
    stream.send(request_of("/healthz"))
    assert stream.answer().status == 200


def test_a_stream_that_is_behind_ends_too(live_with):
    """
    A long log must not keep it past a proxy's limit; each stream gets at least one page further.
    """
    here = live_with(stream_seconds_max=0)
    space = Space(here.port)
    space.push(*numbered(20))
    seqs, last_id, streams = [], "0", 0
    while len(seqs) < 20:
        stream = space.stream("limit=1", headers={"Last-Event-ID": last_id})
        messages = [m for m in stream.all() if m.kind == "message"]
        assert messages and stream.head.is_whole
        seqs += [seq for message in messages for seq in message.seqs]
        last_id = str(messages[-1].id)
        streams += 1
    assert seqs == list(range(1, 21)) and streams == 20


class Breaking(MemoryStore):
    """A store that fails when it is told to."""

    error: Exception | None = None

    def range_after(self, space, query):
        if self.error is not None:
            raise self.error
        return super().range_after(space, query)

    def cached_range(self, space, query):
        return None if self.error is not None else super().cached_range(space, query)


@pytest.mark.parametrize(
    ("error", "code"),
    [(StorageUnavailable(), "storage-unavailable"), (RuntimeError("secret"), "internal-error")],
)
def test_what_goes_wrong_later_is_the_last_message(live_with, lines, error, code):
    """
    A problem document, without an id: whoever connects again goes on where it was.
    """
    store = Breaking()
    space = Space(live_with(store).port)
    space.push(changeset())
    stream = space.stream()
    assert stream.next().id == 1
    store.error = error
    space.push(changeset())
    [problem] = stream.all()
    assert (problem.id, problem.kind) == (None, "problem")
    assert json.loads(problem.data)["code"] == code and b"secret" not in problem.data
    assert stream.head.is_whole
    until(lambda: streamed(lines))
    [line] = streamed(lines)
    assert (line["status"], line["problem"]) == (200, code)


def test_a_log_that_is_restored_under_a_stream_is_told(live_with):
    """
    The device must learn that the server has another history now.
    """
    store = MemoryStore()
    space = Space(live_with(store).port)
    space.push(*numbered(3))
    stream = space.stream()
    assert stream.next().id == 3
    del store._spaces[space.name]
    space.push(changeset())
    [problem] = stream.all()
    assert json.loads(problem.data)["code"] == "log-behind"


def streamed(lines) -> list[dict]:
    return [line for line in lines if str(line.get("path")).endswith("/events/stream")]


def test_a_stream_is_one_line_at_its_end(live, space, lines):
    """
    Not one for each message, and no guess of how many bytes it was.
    """
    space.push(changeset())
    stream = space.stream(headers={"X-Request-Id": "stream-1"})
    stream.next()
    space.push(changeset())
    stream.next()
    assert not streamed(lines)
    stream.abort()
    until(lambda: streamed(lines))
    [line] = streamed(lines)
    assert line["path"] == "/v1/spaces/{space}/events/stream"
    assert (line["request_id"], line["status"], line["problem"]) == ("stream-1", 200, None)
    assert line["bytes_out"] is None and line["space"] == space.name


# Waiting


def test_a_wait_is_over_at_once_if_there_is_something(space):
    space.push(*numbered(3))
    began = time.monotonic()
    assert space.http.get("events?wait=60&after=1").json()["through"] == 3
    assert space.http.get("events?wait=60&limit=1").json()["more"]
    # What the filter passed over moves the cursor, but is nothing to come back for.
    assert time.monotonic() - began < 10


def test_a_wait_ends_empty_at_its_deadline(live, space):
    mark = space.push(*numbered(2))
    began = time.monotonic()
    page = space.http.get("events?wait=1&after=2").json()
    assert 0.95 < time.monotonic() - began < 10
    assert (page["events"], page["through"], page["head"], page["more"]) == ([], 2, 2, False)
    assert mark["head"] == 2
    until(live.is_idle)


def test_a_wait_is_woken_by_a_push(live, space):
    """
    Long before its deadline; two that wait see the same.
    """
    space.push(changeset())
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        waiting = [pool.submit(space.http.get, "events?wait=8&after=1") for _ in range(2)]
        until(lambda: waiters(live, space) == 2)
        space.push(changeset())
        pages = [found.result().json() for found in waiting]
    assert time.monotonic() - began < 6
    assert [page["through"] for page in pages] == [2, 2]
    assert pages[0]["events"] == pages[1]["events"] != []


def waiters(live, space) -> int:
    joined = live.resources.log_watches._spaces.get(space.name)
    return 0 if joined is None else len(joined.watches)


def test_a_filtered_wait_ignores_what_others_do(live, space):
    """
    It is not answered for the sake of what was not asked for; but the cursor has moved by it.
    """
    space.push(*numbered(1, "a"))
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        waiting = pool.submit(space.http.get, "events?wait=1&after=1&collections=a")
        until(lambda: waiters(live, space))
        space.push(*numbered(2, "b"))
        page = waiting.result().json()
        assert time.monotonic() - began > 0.9
        assert (page["events"], page["through"]) == ([], 3)
        waiting = pool.submit(space.http.get, "events?wait=8&after=3&collections=a")
        until(lambda: waiters(live, space))
        space.push(*numbered(1, "b"), *numbered(1, "a"))
        page = waiting.result().json()
        assert ([e["seq"] for e in page["events"]], page["through"]) == ([5], 5)
    assert time.monotonic() - began < 7


def test_a_wait_ends_although_the_log_never_rests(live_with):
    """
    What others do all the time must not move the deadline.
    """

    class NeverAtHand(MemoryStore):
        def cached_range(self, space, query):
            return None

        def range_after(self, space, query):
            page = super().range_after(space, query)
            self.push(space, push_of(changeset(put(collection="b"))))
            return page

    store = NeverAtHand()
    space = Space(live_with(store).port)
    space.push(changeset())
    began = time.monotonic()
    page = space.http.get("events?wait=1&after=1&collections=a").json()
    assert time.monotonic() - began < 10
    assert page["events"] == [] and page["through"] > 2


@pytest.mark.parametrize("wait", ["61", "-1", "1.5", "x", ""])
def test_a_wait_has_a_limit(space, wait):
    space.push(changeset())
    answer = space.http.get(f"events?wait={wait}&after=1")
    assert answer.status_code == 400
    assert [error["parameter"] for error in answer.json()["errors"]] == ["wait"]


def test_who_asks_for_no_answer_waits_for_none(live, space):
    """
    HEAD is answered by Flask, where each that waits would hold a thread.
    """
    space.push(changeset())
    began = time.monotonic()
    for path in ("events?wait=60&after=1", "events/stream?after=1"):
        assert space.http.head(path).status_code == 200
    assert time.monotonic() - began < 10


# Under load


@pytest.mark.seconds(10)
def test_everybody_who_follows_sees_each_event_once(live):
    """
    Writers, streams and polls on one space; connections break all the time, in both ways.
    """
    space = Space(live.port)
    space.push(changeset())
    follow_all(space, [live.port], writers=3, pushes=80)
    until(live.is_idle)
    assert not live.store._watchers[space.name]


def follow_all(space: Space, ports: list[int], *, writers: int, pushes: int) -> None:
    """Also used with several workers of one database: each reconnection may go to another."""
    last = 1 + writers * pushes
    seen: dict[int, list[int]] = {}

    def write(number: int) -> None:
        here = Space(ports[number % len(ports)], space.name)
        for _ in range(pushes):
            here.push(*numbered(1), device=B)

    def follow(number: int) -> None:
        rng = random.Random(number)
        found = seen.setdefault(number, [])
        while not found or found[-1] < last:
            port = rng.choice(ports)
            stream = space.stream(headers={"Last-Event-ID": str(len(found))}, port=port)
            assert stream.head.status == 200, stream.head.body()
            for _ in range(rng.randint(1, 20)):
                message = stream.next()
                assert message.kind == "message", message
                found += message.seqs
                assert message.id == found[-1]
                if found[-1] == last:
                    break
            rng.choice([stream.close, stream.abort])()

    def poll(number: int) -> None:
        rng = random.Random(number)
        found = seen.setdefault(number, [])
        mark = ""
        while not found or found[-1] < last:
            with httpx.Client(base_url=f"http://127.0.0.1:{rng.choice(ports)}", timeout=9) as http:
                query = f"after={len(found)}&mark={mark}&wait=5"
                answer = http.get(f"/v1/spaces/{space.name}/events?{query}")
                assert answer.status_code == 200, answer.text
                found += [event["seq"] for event in answer.json()["events"]]
                mark = answer.json()["mark"]

    with ThreadPoolExecutor(32) as pool:
        tasks = [pool.submit(write, n) for n in range(writers)]
        tasks += [pool.submit(follow, 100 + n) for n in range(6)]
        tasks += [pool.submit(poll, 200 + n) for n in range(4)]
        for task in tasks:
            task.result(30)
    assert len(seen) == 10
    for found in seen.values():
        assert found == list(range(1, last + 1))


def test_who_has_gone_holds_nothing(live, space):
    """
    Streams and waits that are closed, aborted, or closed with another request behind them.
    """
    space.push(changeset())
    path = f"/v1/spaces/{space.name}/events"
    requests = [request_of(f"{path}/stream?after=1"), request_of(f"{path}?after=1&wait=60")]
    for kind in ("close", "abort"):
        clients = []
        for number in range(150):
            client = Connection(live.port)
            client.send(requests[number % 2])
            clients.append(client)
        until(lambda: waiters(live, space) == 150)
        for client in clients:
            getattr(client, kind)()
        until(live.is_idle)
        until(lambda: len(live.server.server_state.connections) <= 1)  # the pusher's own
        assert not live.store._watchers[space.name]


def test_who_has_gone_with_a_request_behind_a_stream_holds_nothing(live_with, lines):
    """
    The server tells the last request of a connection alone that its client has gone; and that is
    no fault that somebody must look into.
    """
    live = live_with(stream_heartbeat_seconds=0.1)
    space = Space(live.port)
    space.push(changeset())
    clients = [Connection(live.port) for _ in range(20)]
    for client in clients:
        client.send(request_of(f"/v1/spaces/{space.name}/events/stream?after=1") * 2)
    until(lambda: waiters(live, space) == 20)
    for client in clients:
        client.abort()
    until(live.is_idle)
    assert {line["event"] for line in lines} == {"request"}


def test_a_download_ends_when_its_client_has_gone(live_with):
    """
    A snapshot of a long log would else be read to its end for nobody.
    """
    limits = Limits(page_snapshot_records=1)
    pages = 0

    class Counting(MemoryStore):
        def _snapshot_page(self, *args):
            nonlocal pages
            pages += 1
            time.sleep(0.001)
            return super()._snapshot_page(*args)

    live = live_with(Counting(limits=limits), page_snapshot_records=1)
    space = Space(live.port)
    space.push(changeset(*[put(new_id(), text="x" * 2_000) for _ in range(1_000)]))
    client = Connection(live.port)
    client.send(request_of(f"/v1/spaces/{space.name}/snapshot"))
    assert client.answer().status == 200
    client.abort()
    until(live.is_idle)
    assert pages < 800


def test_a_reader_that_stalls_costs_a_page_and_holds_up_nobody(live_with):
    """
    What it does not read is not read from the log either.
    """
    live = live_with(page_bytes_max=MIB)
    space = Space(live.port)
    space.push(changeset())
    stalled = space.stream("after=1", rcvbuf=4_096)
    swift = space.stream("after=1")
    text = "x" * 3_000_000
    for n in range(12):
        space.push(changeset(put(new_id(), text=text)))
        assert swift.seqs(1) == [n + 2]
    gc.collect()
    buffered = [c.transport.get_write_buffer_size() for c in live.server.server_state.connections]
    assert 0 < max(buffered) < 2 * 3_100_000
    assert sum(buffered) < 2 * 3_100_000
    assert stalled.seqs(12) == list(range(2, 14)), "it comes as soon as it is read"


def test_pages_that_wait_to_be_read_are_refused_once_others_have_cost_too_much():
    """
    All of them are let in at once; each is kept until its reader has taken it.
    """
    limits = Limits(requests_per_second_per_address=100, bytes_per_request_counted=1_000)

    class Slow(MemoryStore):
        def cached_range(self, space, query):
            return None

        def range_after(self, space, query):
            time.sleep(0.05)
            return super().range_after(space, query)

    store = Slow()
    app = create_app(
        store=store,
        master=store,
        ready=dict,
        limits=limits,
        access=OpenAccess(),
        rates=LimitedRates(limits, lambda: 0.0),
    )
    with served(store, limits, app) as live:
        space = Space(live.port)
        space.push(changeset(put(text="x" * 400_000)))
        clients = [Connection(live.port) for _ in range(40)]
        for client in clients:
            client.send(request_of(f"/v1/spaces/{space.name}/events"))
        found = Counter(client.answer().status for client in clients)
    assert found[200] + found[429] == 40
    assert 0 < found[200] < 10


def test_messages_of_a_stream_are_small(live_with):
    """
    Each is kept until its reader has taken it; and all of the log comes in them.
    """
    live = live_with(stream_message_bytes_max=5_000)
    space = Space(live.port)
    space.push(*(changeset(put(new_id(), text="x" * 2_000)) for _ in range(5)))
    stream = space.stream()
    assert [stream.next().seqs for _ in range(3)] == [[1, 2], [3, 4], [5]]
    space.push(*(changeset(put(new_id(), text="x" * size)) for size in (6_000, 2_000)))
    assert [stream.next().seqs for _ in range(2)] == [[6], [7]]


def test_a_reader_that_stalls_for_long_is_given_up(monkeypatch):
    """
    By the system: else it would be kept for as long as its machine answers.
    """
    monkeypatch.setattr(listening, "SILENT_SECONDS", 1)
    with served(MemoryStore()) as live:
        space = Space(live.port)
        space.push(changeset(put(text="x" * 3_000_000)), changeset(put(text="x" * 3_000_000)))
        stalled = space.stream("limit=1", rcvbuf=4_096)
        until(lambda: waiters(live, space) == 1)
        until(live.is_idle)
        stalled.close()


def test_a_reader_that_stalls_does_not_hold_up_the_end(monkeypatch):
    """
    There is always some phone that stopped to read; the service must not wait for it.
    """
    monkeypatch.setattr(web, "STALLED_STOP_SECONDS", 0.2)
    with served(MemoryStore()) as live:
        space = Space(live.port)
        space.push(*[changeset(put(text="x" * 3_000_000)) for _ in range(2)])
        stalled = space.stream("limit=1", rcvbuf=4_096)
        until(lambda: waiters(live, space) == 1)
        began = time.monotonic()
        live.stop()
        assert time.monotonic() - began < 4
        stalled.abort()


# Bodies, methods and paths at this door


def body_of(*changesets: dict) -> bytes:
    return json.dumps({"device": A, "sent_at": SENT_AT, "changesets": changesets}).encode()


JSON = {"Content-Type": "application/json"}
CHUNKED = JSON | {"Transfer-Encoding": "chunked"}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def begun_push(live, space, headers: dict[str, str]) -> Connection:
    client = Connection(live.port)
    client.send(request_of(f"/v1/spaces/{space.name}/changesets", headers, "POST"))
    return client


def test_a_chunked_body_is_read(live, space):
    client = begun_push(live, space, CHUNKED)
    body = body_of(changeset())
    for n in range(0, len(body), 50):
        client.send(chunk(body[n : n + 50]))
    client.send(b"0\r\n\r\n")
    assert client.answer().json()["head"] == 1


def test_a_chunked_body_is_bounded(live_with):
    """
    It is refused before its end has come; and is not listened to for ever afterwards.
    """
    live = live_with(body_bytes_max=100_000)
    client = begun_push(live, Space(live.port), CHUNKED)
    for _ in range(20):
        client.send(chunk(b" " * 10_000))
    answer = client.answer()
    assert (answer.status, answer.json()["code"]) == (413, "limit-exceeded")
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 100 * MIB:
            client.send(chunk(b" " * MIB))
            sent += MIB
    assert sent < 2 * protocol.UNREAD_BYTES_MAX


def test_a_client_that_sends_all_before_it_reads_learns_why(live_with):
    """
    Most do: closing at once would lose them the answer.
    """
    live = live_with(body_bytes_max=100_000)
    answer = Space(live.port).http.post("changesets", content=b" " * (20 * MIB), headers=JSON)
    assert answer.status_code == 413


@pytest.mark.parametrize("headers", [CHUNKED, JSON | {"Content-Length": "5000"}])
@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_body_that_breaks_off_stores_nothing(live, space, headers, end):
    """
    Not even if what has come is whole by itself.
    """
    client = begun_push(live, space, headers)
    body = body_of(changeset())
    client.send(chunk(body) if headers is CHUNKED else body)
    until(lambda: live.server.server_state.tasks)
    getattr(client, end)()
    until(live.is_idle)
    assert space.name not in live.store._spaces


def test_a_badly_chunked_body_stores_nothing(live, space):
    client = begun_push(live, space, CHUNKED)
    client.send(chunk(body_of(changeset())) + b"no number\r\n")
    assert client.answer().status == 400
    until(live.is_idle)
    assert space.name not in live.store._spaces


def test_requests_of_a_connection_are_answered_in_their_order(live, space):
    """
    One after another, and all at once; a push, its pull, and something of Flask's.
    """
    client = Connection(live.port)
    for n in range(1, 4):
        body = body_of(changeset())
        head = request_of(
            f"/v1/spaces/{space.name}/changesets", JSON | {"Content-Length": str(len(body))}, "POST"
        )
        pull = request_of(f"/v1/spaces/{space.name}/events?after={n - 1}")
        client.send(head + body + pull + request_of("/healthz"))
        assert client.answer().json()["head"] == n
        assert client.answer().json()["through"] == n
        assert client.answer().json() == {"status": "ok"}


def test_there_is_an_end_to_what_is_asked_in_advance(live, space):
    """
    Each request behind a stream takes memory, for as long as it lasts.
    """
    space.push(changeset())
    client = Connection(live.port)
    client.send(request_of(f"/v1/spaces/{space.name}/events/stream?after=1"))
    assert client.answer().status == 200
    client.send(request_of("/healthz") * 500)
    until(live.is_idle)


@pytest.mark.parametrize("path", ["changesets", "sync", "events", "events/stream", "snapshot"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "POST"])
def test_a_wrong_method_is_told_the_right_ones(live, space, method, path):
    """
    HEAD has the headers of GET and no body; OPTIONS names the methods.
    """
    if path == "events/stream" and method == "GET":
        return
    space.push(changeset())
    url = f"/v1/spaces/{space.name}/{path}"
    allowed = {"POST"} if path in ("changesets", "sync") else {"GET", "HEAD"}
    answer = httpx.request(method, live.url + url)
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if method == "OPTIONS" or method not in allowed:
        assert answer.status_code == (200 if method == "OPTIONS" else 405)
        assert set(answer.headers["Allow"].split(", ")) == allowed | {"OPTIONS"}
    else:
        assert answer.status_code == (415 if method == "POST" else 200)
    if method == "HEAD":
        assert answer.content == b""
        assert answer.headers["Content-Type"]


@pytest.mark.parametrize("space", ["%2e%2e", "..", "%2E", "%00", "a%0a", "UP", "%C3%A9", "a%20b"])
@pytest.mark.parametrize("path", ["events", "events/stream", "snapshot"])
def test_what_cannot_be_a_space_is_refused(live, space, path):
    client = Connection(live.port)
    client.send(request_of(f"/v1/spaces/{space}/{path}"))
    answer = client.answer()
    assert answer.status == 400
    assert answer.json()["errors"][0]["parameter"] == "space"


@pytest.mark.parametrize("id", ["%FF", "%C3", "%ED%A0%80"])
def test_a_path_that_is_no_utf8_is_refused(live, space, id):
    """
    It would else be read as another record's: one whose id has U+FFFD for the strange byte.
    """
    space.push(changeset(put("\ufffd")))
    client = Connection(live.port)
    client.send(request_of(f"/v1/spaces/{space.name}/records/tasks/{id}"))
    assert client.answer().status == 400


@pytest.mark.parametrize("target", ["/v1/spaces/s/events?é=1", "/v1/spaces/é/records", "x", "*"])
def test_a_strange_target_is_no_fault_of_ours(live, target):
    """
    Some clients do not encode what they should.
    """
    client = Connection(live.port)
    client.send(request_of(target))
    assert client.answer().status in (400, 404)


# Heads of requests


def test_long_headers_and_queries_are_read_as_far_as_they_may_be(live, space):
    space.push(changeset())
    client = Connection(live.port)
    path = f"/v1/spaces/{space.name}/events"
    client.send(request_of(path, {"X-Long": "x" * 60_000}))
    assert client.answer().json()["head"] == 1
    client.send(request_of(f"{path}?after={'0' * 60_000}"))
    assert client.answer().status == 400


@pytest.mark.parametrize(
    "request_",
    [
        request_of("/healthz", {"X-Long": "x" * 70_000}),
        request_of("/healthz", {f"X-{n}": "x" * 20 for n in range(3_000)}),
        request_of(f"/healthz?{'x' * 70_000}"),
    ],
    ids=["one header", "many headers", "the query"],
)
def test_a_head_that_is_too_large_is_refused(live, request_):
    client = Connection(live.port)
    client.send(request_of("/healthz"))
    assert client.answer().body()
    client.send(request_)
    answer = client.answer()
    assert answer.status == 431 and answer.body()
    assert client.is_closed()


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nX"])
def test_a_head_without_an_end_is_not_kept(live, start):
    """
    Memory would be anybody's to take.
    """
    client = Connection(live.port)
    client.send(start)
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 50 * MIB:
            client.send(b"x" * 10_000)
            sent += 10_000
    assert sent < 20 * MIB, "no more than what the system buffers"


def test_trailers_are_not_kept(live, space):
    client = begun_push(live, space, CHUNKED)
    client.send(chunk(body_of(changeset())) + b"0\r\n")
    client.send(b"Content-Type: text/plain\r\n" * 1_000 + b"\r\n")
    assert client.answer().json()["head"] == 1


# The processes of `foldlog serve`


class Service:
    """`foldlog serve --workers 2`."""

    def __init__(self, folder: Path, **settings: str):
        self.port = reserve_port()
        self.log = folder / "service.log"
        command = [sys.executable, "-m", "foldlog", "serve", "--workers", "2"]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "--data", str(folder / "data"), "--port", str(self.port)],
                stdout=file,
                stderr=file,
                env=environment() | settings,
            )
        until(lambda: is_ready(f"http://127.0.0.1:{self.port}") and len(self.workers()) == 2, 60)

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # just gone; a zombie is one, too
                if "web" in child.cmdline():
                    found.append(child)
        return found


@pytest.fixture
def service(data_folder):
    service = Service(data_folder)
    yield service
    Connection.close_all()
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(60)


def of_worker(worker: psutil.Process, streams: list[Stream]) -> list[Stream]:
    """Which of these connections the kernel gave to this worker."""
    ports = {c.raddr.port for c in worker.net_connections() if c.raddr}
    return [stream for stream in streams if stream.sock.getsockname()[1] in ports]


@pytest.mark.seconds(10)
def test_a_worker_that_exceeds_its_memory_dies_alone(data_folder):
    """The supervisor replaces it. The requests at the other worker go on, and no push is lost."""
    service = Service(
        data_folder,
        FOLDLOG_WEB_MEMORY_BYTES_MAX=str(256 * MIB),
        FOLDLOG_LIMITS=f"bodies_bytes_max={2**31 - 1} bodies_bytes_per_caller_max=0",
    )
    try:
        space = Space(service.port)
        space.push(changeset())
        victim, other = service.workers()
        streams = [space.stream("after=1") for _ in range(24)]
        kept = of_worker(other, streams)
        greedy = [Connection(service.port) for _ in range(80)]
        until(lambda: len(of_worker(victim, greedy) + of_worker(other, greedy)) == len(greedy))
        head = request_of(
            f"/v1/spaces/{space.name}/changesets",
            {"Content-Type": "application/json", "Content-Length": str(8 * MIB)},
            "POST",
        )
        with suppress(OSError):
            for client in of_worker(victim, greedy):
                client.send(head + b" " * (8 * MIB - 1))
        until(lambda: victim not in service.workers(), 20)
        assert b"a process exceeds its memory" in service.log.read_bytes()

        until(lambda: len(service.workers()) == 2 and victim not in service.workers(), 20)
        assert other in service.workers()
        space.http = Space(service.port, space.name).http
        until(lambda: space.push(changeset())["head"] == 2)
        assert [stream.seqs(1) for stream in kept] == [[2]] * len(kept)
    finally:
        Connection.close_all()
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(60)


@pytest.mark.seconds(10)
def test_workers_die_and_stop_alone_and_together(service):
    """
    What is pushed through one worker comes to the streams of both. One that is killed breaks its
    own connections alone and comes back on the same port. SIGTERM ends all that wait in good order.
    """
    space = Space(service.port)
    space.push(changeset())
    streams = [space.stream("after=1") for _ in range(24)]
    victim, other = service.workers()
    broken, kept = of_worker(victim, streams), of_worker(other, streams)
    assert broken and kept and len(broken) + len(kept) == len(streams)
    space.push(changeset())
    assert [stream.seqs(1) for stream in streams] == [[2]] * len(streams)

    victim.kill()
    for stream in broken:
        with suppress(ConnectionError):
            assert stream.all() == []
        assert not stream.head.is_whole
    space.http = Space(service.port, space.name).http
    until(lambda: len(service.workers()) == 2, 20)
    again = [space.stream(headers={"Last-Event-ID": "2"}) for _ in range(24)]
    assert {stream.head.status for stream in again} == {200}
    assert all(of_worker(worker, again) for worker in service.workers())
    space.push(changeset())
    assert [stream.seqs(1) for stream in kept + again] == [[3]] * (len(kept) + len(again))

    waiting = [Connection(service.port) for _ in range(12)]
    for client in waiting:
        client.send(request_of(f"/v1/spaces/{space.name}/events?after=3&wait=60"))
    time.sleep(0.5)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    for stream in kept + again:
        assert {message.kind for message in stream.all()} <= {"comment"}
        assert stream.head.is_whole and stream.is_closed()
    for client in waiting:
        answer = client.answer()
        assert (answer.status, answer.json()["events"]) == (200, [])
    assert service.process.wait(20) == 0
    assert time.monotonic() - began < 10
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line[:1] == "{"]
    ended = [line for line in lines if str(line.get("path")).endswith("/stream")]
    assert len(ended) == len(kept) + len(again), "each is a line of the log, in the last moment too"
