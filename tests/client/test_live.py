"""The live channel on a real server, and its failures."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.resources import Resources
from foldlog.api.server import AsgiServer
from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.replica import Replica
from foldlog.client.sync import background, schedule
from foldlog.client.sync.file_lock import file_lock
from foldlog.client.sync.live import LiveChannel
from foldlog.client.sync.results import PageResult
from foldlog.client.sync.schedule import POLL_SECONDS_MAX
from foldlog.client.transport import sse, stream
from foldlog.client.transport.server import HttpServer
from foldlog.client.transport.stream import Page, Stream
from foldlog.domain.events import decode_event
from foldlog.domain.limits import Limits
from foldlog.domain.merge import fold
from foldlog.infrastructure.memory.store import MemoryStore
from tests.client.replicas import replicas
from tests.client.serving import serving
from tests.simulation.world import copy_of

SPACE = "home"
STREAM = f"/v1/spaces/{SPACE}/events/stream"
SYNC = f"/v1/spaces/{SPACE}/sync"
#: far less than any poll, so that only a live stream is as fast
PROMPT_SECONDS = 4.0


class Service:
    """The service in this process, with hooks of a test between the service and its clients."""

    def __init__(self, store: MemoryStore, door: AsgiServer):
        self.store = store
        self._door = door
        self.asked: list[str] = []
        #: answers in place of the stream
        self.instead: Callable | None = None
        #: wraps `send` of the stream
        self.on_the_way: Callable | None = None
        self.url = ""

    async def __call__(self, scope, receive, send):
        self.asked.append(scope["path"])
        if scope["path"] == STREAM and self.instead is not None:
            await self.instead(send)
            return
        if scope["path"] == STREAM and self.on_the_way is not None:
            send = self.on_the_way(send)
        await self._door(scope, receive, send)

    def count(self, path: str) -> int:
        return self.asked.count(path)


@pytest.fixture
def service():
    store = MemoryStore(limits=Limits(stream_heartbeat_seconds=1))
    app = create_app(
        store=store,
        master=store,
        ready=dict,
        limits=Limits(stream_heartbeat_seconds=1),
        access=OpenAccess(),
    )
    with Resources(4) as resources:
        service = Service(store, AsgiServer(app, resources))
        with serving(service) as service.url:
            yield service


@pytest.fixture
def device(service, tmp_path):
    """Opens a replica by the name of its file. It syncs in the background by default."""
    with replicas(tmp_path, SPACE, lambda: HttpServer(service.url, SPACE)) as opened:

        def open_device(name: str, **options) -> Replica:
            return opened(name, **{"keep_syncing": True, **options})

        yield open_device


@pytest.fixture
def quick(monkeypatch):
    """Shortens the waits."""
    monkeypatch.setattr(schedule, "RETRY_SECONDS_MIN", 0.02)
    monkeypatch.setattr(background, "RECONNECT_GRACE_SECONDS", 0.2)


def until(is_so: Callable[[], object], seconds: float = 10.0) -> float:
    """Waits for a condition, and returns the seconds that it took."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() < begun + seconds, "the condition was never met"
        time.sleep(0.005)
    return time.monotonic() - begun


def is_live(replica: Replica) -> bool:
    return replica.status().live


def tasks(replica: Replica):
    return replica.collection("tasks")


def looks(replica: Replica) -> dict:
    return {record.id: (record.fields, record.seq) for record in tasks(replica)}


def folded(store: MemoryStore) -> dict:
    """Folds the log."""
    records: dict = {}
    for entry in store._space(SPACE).entries:
        fold(records, decode_event(entry.state))
    return {key[1]: (record.fields, record.seq) for key, record in records.items()}


def test_a_change_of_one_device_is_shown_on_another_at_once(service, device):
    """The channel delivers the change without a poll. Local changes are sent as before."""
    phone, tablet = device("phone"), device("tablet")
    until(lambda: is_live(phone) and is_live(tablet))
    before, changes = service.count(SYNC), []
    tablet.callbacks.on_change(changes.append)
    received = tablet.status().bytes_received

    milk = tasks(phone).create(title="Milk")
    assert until(lambda: tasks(tablet).get(milk.id)) < PROMPT_SECONDS
    until(lambda: tasks(phone)[milk.id].sync_status == 0)

    until(lambda: changes)
    assert [(change.id, change.record["title"]) for change in changes] == [(milk.id, "Milk")]
    assert service.count(SYNC) == before + 1
    assert looks(tablet) == looks(phone) == folded(service.store)
    status = tablet.status()
    assert status.bytes_received > received + 100 and status.lag == 0
    assert status.next_try_seconds > POLL_SECONDS_MAX
    tablet.stop()
    assert not is_live(tablet) and tablet._store.meta.get("bytes_received") >= status.bytes_received


def test_the_channel_can_be_turned_off(service, device):
    """With `live=False` the replica only polls."""
    phone = device("phone", live=False)
    until(lambda: service.count(SYNC) >= 2)
    assert service.count(STREAM) == 0 and not is_live(phone)


async def no_such_path(send):
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"<h1>Not found</h1>"})


def test_an_older_service_is_polled(service, device):
    """The device asks once for the channel, and then only polls for a while."""
    service.instead = no_such_path
    phone, tablet = device("phone", keep_syncing=False), device("tablet")
    until(lambda: service.count(STREAM))
    milk = tasks(phone).create(title="Milk")
    phone.sync()
    until(lambda: tasks(tablet).get(milk.id))
    assert service.count(STREAM) == 1 and not is_live(tablet)
    assert tablet.status().why_not is None


async def silence(send):
    """Sends the head of a stream, and then stays silent."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"retry: 20\n\n", "more_body": True})
    await asyncio.sleep(2)


async def no_answer(send):
    await asyncio.sleep(2)


@pytest.mark.parametrize("instead", [silence, no_answer])
def test_a_silent_stream_is_closed(service, device, quick, monkeypatch, instead):
    """The device polls then, as behind a proxy that buffers the stream."""
    monkeypatch.setattr(stream, "SILENCE_SECONDS", 0.3)
    service.instead = instead
    phone, tablet = device("phone", keep_syncing=False), device("tablet")
    until(lambda: service.count(STREAM))
    milk = tasks(phone).create(title="Milk")
    phone.sync()
    until(lambda: tasks(tablet).get(milk.id))
    until(lambda: service.count(STREAM) >= 2)  # the device tries again
    until(lambda: not is_live(tablet))


@pytest.mark.parametrize("instead", [None, silence, no_answer])
def test_closing_is_prompt(service, device, instead):
    """Also while a stream is silent or still connects."""
    service.instead = instead
    phone = device("phone")
    until(lambda: service.count(STREAM))
    if instead is not no_answer:
        until(lambda: is_live(phone))
    begun = time.monotonic()
    phone.close()
    assert time.monotonic() < begun + PROMPT_SECONDS
    if instead is not no_answer:
        assert "foldlog-live" not in {thread.name for thread in threading.enumerate()}


class Cut(Exception):
    """The connection is gone."""


def cutting(rng: random.Random):
    """Splits streams into small pieces, and breaks them at random."""

    def on_the_way(send):
        left = int(2 ** rng.uniform(0, 14))

        async def crumbs(message):
            nonlocal left
            body = message.get("body", b"").replace(b"retry: 1000", b"retry: 10")
            while body:
                size = min(rng.randint(1, 400), left)
                if not size:
                    raise Cut
                await send({**message, "body": body[:size], "more_body": True})
                body, left = body[size:], left - size
            if message["type"] == "http.response.start" or not message.get("more_body"):
                await send(message)

        return crumbs

    return on_the_way


@pytest.mark.parametrize("seed", range(3))
def test_a_broken_stream_loses_and_repeats_no_event(service, device, quick, monkeypatch, seed):
    monkeypatch.setattr(background, "RECONNECT_GRACE_SECONDS", 1.0)
    monkeypatch.setattr(schedule, "RETRY_SECONDS_MAX", 0.05)  # retries soon
    rng = random.Random(seed)
    service.on_the_way = cutting(rng)
    phone, tablet = device("phone", keep_syncing=False), device("tablet")
    tasks(phone).create(id="n")
    phone.sync()
    until(lambda: tasks(tablet).get("n"))
    taken = []
    apply_page = tablet._background._live._apply_page
    tablet._background._live._apply_page = lambda page: taken.append(apply_page(page)) or taken[-1]

    def is_enough() -> bool:
        return taken.count(PageResult.APPLIED) >= 5 and service.count(STREAM) >= 8

    number = 0
    while not is_enough():
        number += 1
        assert number < 500, "too few pages arrive"
        tasks(phone).increment("n", count=1)
        tasks(phone).create(id=f"r{number}", title="x" * rng.randrange(300))
        if rng.random() < 0.2:
            tasks(tablet).increment("n", count=1)
        phone.sync()
        time.sleep(rng.choice([0, 0.01, 0.05]))
    until(lambda: tablet.status().unsent == 0)
    phone.sync()
    until(lambda: looks(tablet) == folded(service.store))
    assert looks(phone) == looks(tablet)
    ids = [decode_event(entry.state).id for entry in service.store._space(SPACE).entries]
    assert len(ids) == len(set(ids))


def problem(code: str, status: int):
    async def instead(send):
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = b'event: problem\ndata: {"code": "%b", "status": %d}\n\n' % (code.encode(), status)
        await send({"type": "http.response.body", "body": body})

    return instead


@pytest.mark.parametrize("code", ["storage-unavailable", "log-changed"])
def test_a_problem_on_the_stream(service, device, quick, code):
    """The device waits for a busy service, and syncs after a changed log."""
    service.instead = problem(code, 503)
    phone = device("phone")
    until(lambda: service.count(STREAM) >= 3)
    service.instead = None
    until(lambda: is_live(phone))
    assert phone.status().problem is None
    # The third stream is counted before its answer, which may be a problem or a stream.
    assert service.count(SYNC) >= (3 if code == "log-changed" else 1)


def test_the_stream_detects_a_service_that_lost_events(service, device, quick):
    """A sync heals, and both devices have all records in the end."""
    phone, tablet = device("phone", keep_syncing=False), device("tablet")
    tasks(phone).create(id="one")
    phone.sync()
    until(lambda: tasks(tablet).get("one") and is_live(tablet))
    backup = copy_of(service.store)
    tasks(tablet).create(id="two")
    until(lambda: tasks(tablet)["two"].sync_status == 0)

    service.store._spaces.update(backup)
    tasks(phone).create(id="three")
    tasks(phone).create(id="four")
    phone.sync()
    until(lambda: {"one", "two", "three", "four"} == set(looks(tablet)) and is_live(tablet))
    until(lambda: looks(tablet) == folded(service.store))
    phone.sync()
    assert looks(phone) == looks(tablet)


def test_a_lost_stream_is_followed_by_the_next(service, device, quick):
    """Events between the two streams arrive as well."""
    broken = []

    def on_the_way(send):
        async def breaks(message):
            if b"data" in message.get("body", b"") and not broken:
                broken.append(message)
                raise Cut
            await send(message)

        return breaks

    service.on_the_way = on_the_way
    phone, tablet = device("phone", keep_syncing=False), device("tablet")
    until(lambda: is_live(tablet))
    milk = tasks(phone).create(title="Milk")
    phone.sync()
    until(lambda: tasks(tablet).get(milk.id) and is_live(tablet))
    assert broken and service.count(STREAM) >= 2


def test_one_of_several_replicas_of_a_file_follows_the_channel(service, device):
    """The others read the records from the file."""
    one = device("phone")
    until(lambda: is_live(one))
    other, tablet = device("phone"), device("tablet")
    until(lambda: is_live(tablet))
    milk = tasks(tablet).create(title="Milk")
    assert until(lambda: tasks(other).get(milk.id)) < PROMPT_SECONDS
    assert is_live(one) and not is_live(other)
    assert service.count(STREAM) == 2


def test_a_change_made_while_a_page_is_applied_is_sent(service, device):
    """Another sync finds the file lock taken, so the holder sends the change."""
    phone, tablet = device("phone"), device("tablet", keep_syncing=False)
    until(lambda: is_live(phone))
    again = device("phone", keep_syncing=False)
    tasks(tablet).create(id="milk")
    with file_lock(phone._store.database.path):
        tablet.sync()
        tasks(again).create(id="bread")
        assert again.sync().pushed == 0
        assert tasks(phone).get("milk") is None
    assert until(lambda: tasks(phone).get("milk")) < PROMPT_SECONDS
    assert until(lambda: again.status().unsent == 0) < PROMPT_SECONDS


# Pages without a network.


@pytest.fixture
def page(service, device):
    """Returns a replica, and the next page of its stream."""
    phone, tablet = device("phone", keep_syncing=False), device("tablet", keep_syncing=False)
    tasks(phone).create(id="one")
    phone.sync()
    tablet.sync()
    tasks(phone).create(id="two")
    tasks(phone).create(id="three")
    phone.sync()
    with closing(HttpServer(service.url, SPACE)) as server:
        following = server.follow(tablet.device, 1, tablet._store.meta.get("mark"))
        with closing(following.pages()) as pages:
            return tablet, next(page for page in pages if page)


def changed(page: Page, **members) -> Page:
    """Replaces members of a page, or of its answer."""
    own = {name: value for name, value in members.items() if name in Page.__struct_fields__}
    answer = {**page.answer, **{name: members[name] for name in members.keys() - own.keys()}}
    return msgspec.structs.replace(page, **own, answer=answer)


def test_a_page_is_applied_once(page):
    tablet, page = page
    assert tablet._apply_page(page) is PageResult.APPLIED
    assert tablet._apply_page(page) is PageResult.DUPLICATE
    assert set(looks(tablet)) == {"one", "two", "three"}
    assert (tablet.status().after, tablet.status().head) == (3, 3)


def test_a_page_around_the_cursor_overlaps(page):
    tablet, page = page
    assert tablet._apply_page(page) is PageResult.APPLIED
    tablet._store.meta.set(after=2)
    assert tablet._apply_page(page) is PageResult.OVERLAPS


@pytest.mark.parametrize(
    "change",
    [
        lambda page: changed(page, log="another"),
        lambda page: changed(page, device="another"),
        lambda page: changed(page, mark="another"),
        lambda page: changed(page, after=2),
        lambda page: changed(page, head=0),
        lambda page: changed(page, head=1_000_000),
        lambda page: changed(page, through=4),
        lambda page: changed(page, events=page.answer["events"][1:]),
        lambda page: changed(page, events=page.answer["events"][::-1]),
        lambda page: changed(page, events=[{"seq": 2}, {"seq": 3}]),
        lambda page: changed(page, after=0, through=1, events=page.answer["events"][:1]),
    ],
)
def test_a_page_that_does_not_fit_needs_a_sync(page, change):
    tablet, page = page
    if change(page).answer["head"] == 0:
        tablet._store.meta.set(head=2)
    assert tablet._apply_page(change(page)) is PageResult.NEEDS_SYNC
    assert set(looks(tablet)) == {"one"} and tablet.status().after == 1
    assert tablet.sync().pulled == 2


# The wait before the next stream.


class Ends(Stream):
    """A stream that ends at once, with or without an error."""

    def __init__(self, why: Exception | None):
        super().__init__()
        self._why = why

    def pages(self):
        yield None
        if self._why is not None:
            raise self._why

    def close(self):
        pass


@pytest.mark.parametrize(
    ("why", "at_least", "at_most", "needs_sync"),
    [
        (None, 0.8, 1.2, False),  # a stream that ends this soon counts as a failure
        (Unreachable(), 0.8, 1.2, False),
        (ServerProblem(404, {"code": "no-such-path"}, None), 240, 360, False),
        (ServerProblem(405, {}, None), 240, 360, False),
        (ServerProblem(401, {}, None), 240, 360, False),
        (ServerProblem(403, {}, None), 240, 360, False),
        (ServerProblem(503, {}, 77.0), 77, 77, False),
        (ServerProblem(409, {"code": "log-changed"}, None), 0.8, 1.2, True),
        (ServerProblem(404, {"code": "unknown-space"}, None), 0.8, 1.2, True),
    ],
)
def test_the_wait_before_the_next_stream(tmp_path, why, at_least, at_most, needs_sync):
    now, woken = [1_000.0], threading.Event()
    live = LiveChannel(
        tmp_path / "a.db",
        lambda: Ends(why),
        lambda page: PageResult.DUPLICATE,
        woken,
        lambda: now[0],
    )

    def end_one() -> bool:
        assert live.step() is False
        until(lambda: live.next_at is not None)
        return live.step()

    assert live.next_at is None and not live.step()  # before the first sync
    live.may_connect_from = 1_000.0
    assert end_one() is needs_sync
    assert 1_000 + at_least <= live.next_at <= 1_000 + at_most
    assert live.step() is False and live._reader is None  # too early
    for _ in range(10):
        now[0] = live.next_at
        assert end_one() is needs_sync
    assert 240 <= live.next_at - now[0] <= 360, "the waits grow"


# Server-Sent Events.

TEXT = (
    b"retry: 1000\n\n: hello\n\nid: 3\ndata: {}\n\n:\n\nevent: problem\r\ndata: 1\r\ndata:2\r\n\r\n"
    b"id: 4\n\nunknown\ndata\n\nevent: later\n\ndata: \xc3\xa9\n\n"
)
MESSAGES = [("", b"{}"), ("problem", b"1\n2"), ("", b""), ("", "é".encode())]


@given(st.lists(st.integers(0, len(TEXT))))
def test_messages_are_independent_of_the_pieces(places):
    reader, messages = sse.Reader(), []
    for begin, end in zip([0, *sorted(places)], [*sorted(places), len(TEXT)], strict=True):
        messages += reader.read(TEXT[begin:end])
    assert messages == MESSAGES and reader.retry_seconds == 1


@given(st.integers(0, len(TEXT)))
def test_a_broken_stream_has_only_whole_messages(length):
    messages = sse.Reader().read(TEXT[:length])
    assert messages == MESSAGES[: len(messages)]
