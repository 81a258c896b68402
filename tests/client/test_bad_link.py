"""The device on a bad link: cut connections, proxies with limits of their own, sign-in pages."""

from __future__ import annotations

import random
import time

import pytest

import foldlog
from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.resources import Resources
from foldlog.api.server import AsgiServer
from foldlog.client.replica import Replica
from foldlog.client.store import database as database_module
from foldlog.client.sync import background, schedule, synchroniser
from foldlog.client.transport.server import HttpServer
from foldlog.infrastructure.memory.store import MemoryStore
from tests.client.proxy import content_length, proxied, response
from tests.client.replicas import replicas
from tests.client.serving import serving
from tests.helpers import until

SPACE = "home"
PAGE = b"<html><h1>Welcome to the hotel. Please sign in.</h1></html>"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(database_module, "SYNCHRONOUS", "OFF")
    monkeypatch.setattr(schedule, "RETRY_SECONDS_MIN", 0.02)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def link(store):
    """A service, and a proxy before it."""
    app = create_app(store=store, master=store, ready=dict, access=OpenAccess())
    with (
        Resources(4) as resources,
        serving(AsgiServer(app, resources)) as url,
        proxied(url) as proxy,
    ):
        proxy.direct = url
        yield proxy


@pytest.fixture
def device(link, tmp_path):
    with replicas(tmp_path, SPACE, lambda: None) as opened:

        def open_device(name: str, url: str | None = None, **options) -> Replica:
            server = HttpServer(url or link.url, SPACE, token=options.pop("token", None))
            return opened(name, server=server, **options)

        yield open_device


def fill(replica: Replica, total: int, each: int, seed: int = 1) -> None:
    """Makes records of random text, which compresses to three quarters at best."""
    rng = random.Random(seed)
    tasks = replica.collection("tasks")
    for number in range(total // each):
        tasks.put(f"{seed}-{number:06}", text=rng.randbytes(each // 2).hex())


def ids_of(replica: Replica) -> set[str]:
    return {record.id for record in replica.collection("tasks")}


def wire_bytes(link, action) -> int:
    before = link.bytes
    action()
    return link.bytes - before


# Connections that break.


@pytest.mark.parametrize("each", [8_000, pytest.param(2_000, marks=pytest.mark.slow)])
def test_much_passes_over_a_link_that_is_cut_all_the_time(link, device, each):
    """Up and down complete in one call each, with less than 1.5 times the bytes of the content."""
    a, b = device("a"), device("b")
    fill(a, 1_000_000, each)
    link.cut_after = 128 * 1024
    up = wire_bytes(link, a.sync)
    down = wire_bytes(link, b.sync)
    assert (a.status().unsent, a.status().lag, link.cuts > 5) == (0, 0, True)
    assert ids_of(b) == ids_of(a)
    assert max(up, down) < 1.5 * 1_000_000


@pytest.mark.parametrize("way", ["cut_up_after", "cut_down_after"])
def test_a_connection_that_is_cut_in_one_direction(link, device, way):
    """What never passed before passes now: a megabyte up, four down, scaled to a tenth."""
    fill(device("a", link.direct if way == "cut_down_after" else None), 600_000, 2_000)
    setattr(link, way, 100_000)
    device("a").sync()
    device("b").sync()
    assert device("a").status().unsent == 0
    assert len(ids_of(device("b"))) == 300
    assert link.cuts >= 3


def test_a_snapshot_goes_on_where_it_broke(link, device, monkeypatch):
    """In pages that the link carries. Without them, the first page would never end."""
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 10)
    a = device("a", link.direct)
    for seed in (1, 1, 1):  # each record three times, so that a snapshot is shorter
        fill(a, 600_000, 2_000, seed)
    a.sync()
    link.cut_after = 100_000
    b = device("b")
    told = []
    b.callbacks.on_progress(lambda done, total: told.append(done))
    spent = wire_bytes(link, b.sync)
    assert ids_of(b) == ids_of(a)
    assert link.cuts >= 3 and told == sorted(told) and len(told) > 10
    assert spent < 1.5 * 600_000
    assert any(b"GET /v1/spaces/home/snapshot" in head and b"bytes=" in head for head in link.heads)


@pytest.mark.slow
def test_the_size_grows_again_on_a_good_link(link, device):
    a = device("a")
    link.cut_after = 20_000
    fill(a, 200_000, 1_000)
    a.sync()
    link.cut_after = None
    before = a.status().requests
    fill(a, 5_000_000, 10_000, seed=2)
    a.sync()
    assert a.status().unsent == 0
    assert a.status().requests - before < 80
    assert a._runner._pace.bytes_max > 100_000


def test_a_new_device_does_not_throw_away_a_page(link, device, monkeypatch):
    """It asks for the head first, and goes on with the snapshot that told its size."""
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 10)
    a = device("a", link.direct)
    for _ in range(3):
        fill(a, 400_000, 4_000)
    a.sync()
    b = device("b")
    spent = wire_bytes(link, b.sync)
    assert ids_of(b) == ids_of(a)
    assert spent < 1.2 * 400_000
    assert sum(b"/snapshot" in head for head in link.heads) <= 1


def test_an_older_service_that_refuses_bytes_gets_a_number_of_events(device, link):
    """It answers 400 to the parameter. The device asks for fewer events instead."""
    fill(device("a", link.direct), 600_000, 2_000)
    device("a").sync()
    sync = HttpServer.sync
    asked = []

    def old(self, body):
        asked.append(dict(body))
        if "bytes" in body:
            errors = [{"pointer": "/bytes", "detail": "there is no such member"}]
            document = {"code": "invalid-request", "status": 400, "errors": errors}
            raise foldlog.ServerProblem(400, document, None)
        return sync(self, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpServer, "sync", old)
        link.cut_down_after = 50_000
        device("b").sync()
    assert len(ids_of(device("b"))) == 300
    assert sum("bytes" in body for body in asked) == 1
    assert min(body.get("limit", 500) for body in asked[1:]) < 100


@pytest.mark.slow
def test_the_background_thread_completes_on_a_bad_link(link, device):
    """The live channel too, whose messages are as large as the link carries."""
    link.cut_after = 50_000
    b = device("b", keep_syncing=True)
    a = device("a", keep_syncing=True)
    fill(a, 600_000, 5_000)
    until(lambda: a.status().unsent == 0 and len(ids_of(b)) == 120, 60)


# Proxies with limits.


def limited(limit: int, body: bytes = b"<html>413 Request Entity Too Large</html>"):
    """Answers 413 as nginx does, before the body is read."""
    return lambda head: (
        response("413 Request Entity Too Large", body) if content_length(head) > limit else None
    )


@pytest.mark.parametrize("body", [b"<html>too large</html>", b"", b"{}", b'{"error": "big"}'])
def test_a_413_of_a_proxy_halves_the_batch(link, device, body):
    """Whatever it says, and then no longer runs into the limit all the time."""
    link.respond = limited(40_000, body)
    a = device("a")
    fill(a, 800_000, 4_000)
    a.sync()
    status = a.status()
    assert (status.unsent, status.refused, status.problem) == (0, [], None)
    b = device("b")
    b.sync()
    assert ids_of(b) == ids_of(a)


def test_a_changeset_that_is_too_large_for_the_proxy_steps_aside(link, device):
    """Visibly, and the others go on."""
    link.respond = limited(40_000)
    a = device("a")
    tasks = a.collection("tasks")
    tasks.put("before", n=1)
    tasks.put("big", text=random.Random(3).randbytes(60_000).hex())
    tasks.put("after", n=2)
    a.sync()
    (refusal,) = a.status().refused
    assert (refusal.state, refusal.code) == ("rejected", "limit-exceeded")
    assert "bytes" in refusal.detail and refusal.operations[0]["id"] == "big"
    assert ids_of(a) == {"before", "after"}
    b = device("b", link.direct)
    b.sync()
    assert ids_of(b) == {"before", "after"}


# What answers but is not Foldlog.

NOT_FOLDLOG = {
    "page": response("200 OK", PAGE),
    "page as json": response("200 OK", PAGE, Content_Type="application/json"),
    "object": response("200 OK", b"{}", Content_Type="application/json"),
    "list": response("200 OK", b"[]", Content_Type="application/json"),
    "null": response("200 OK", b"null", Content_Type="application/json"),
    "text": response("200 OK", b'"ok"', Content_Type="application/json"),
    "nothing": response("200 OK"),
    "204": response("204 No Content"),
    "other json": response("200 OK", b'{"log": 1, "head": "x"}', Content_Type="application/json"),
    "events": response(
        "200 OK",
        b'{"log":"l","head":1,"events":[{}],"through":1,"mark":"","more":false,"verdicts":[]}',
    ),
    "302": response("302 Found", PAGE, Location="http://hotel.example/login"),
    "307": response("307 Temporary Redirect", Location="https://hotel.example/login"),
    "304": response("304 Not Modified"),
    "bad location": response("302 Found", PAGE, Location="http://[::1"),
}


@pytest.mark.parametrize("kind", NOT_FOLDLOG)
def test_another_server_is_told_as_that(link, device, kind):
    """In the exception and in the status; never "in sync", and the queue stays."""
    a = device("a")
    a.collection("tasks").put("x", n=1)
    link.respond = lambda head: NOT_FOLDLOG[kind]
    with pytest.raises(foldlog.NotFoldlog):
        a.sync()
    status = a.status()
    assert status.problem["code"] == "not-foldlog"
    assert "another server" in status.why_not
    assert (status.unsent, status.last_sync_ms) == (1, None)
    link.respond = lambda head: None
    a.sync()
    assert (a.status().unsent, a.status().why_not) == (0, None)


@pytest.mark.parametrize("kind", ["page", "object", "nothing", "302"])
@pytest.mark.parametrize("call", ["snapshot", "stream"])
def test_another_server_answers_a_download(link, device, monkeypatch, kind, call):
    """Also in the middle of a first sync, and on the live channel."""
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 10)
    a = device("a", link.direct)
    for _ in range(2):
        fill(a, 40_000, 1_000)
    a.sync()
    b = device("b")
    link.respond = lambda head: NOT_FOLDLOG[kind] if call.encode() in head else None
    if call == "snapshot":
        with pytest.raises(foldlog.Unreachable):
            b.sync()
        assert b.status().problem["code"] in ("not-foldlog", "unreachable")
    else:
        with pytest.raises(foldlog.NotFoldlog):
            next(b._runner.connect().pages())
    link.respond = lambda head: None
    b.sync()
    assert ids_of(b) == ids_of(a)


@pytest.mark.parametrize("status", ["301 Moved", "307 Temporary Redirect", "308 Permanent"])
@pytest.mark.parametrize("prefix", ["", "/sync"])
def test_a_redirect_to_https_says_the_url(link, device, status, prefix):
    a = device("a")
    location = f"https://127.0.0.1{prefix}/v1/spaces/home/sync"
    link.respond = lambda head: response(status, Location=location)
    with pytest.raises(foldlog.NotFoldlog, match=f"server='https://127.0.0.1{prefix}'") as raised:
        a.sync()
    assert raised.value.url == f"https://127.0.0.1{prefix}"
    assert raised.value.url in a.status().problem["detail"]


@pytest.mark.parametrize("status", ["404 Not Found", "502 Bad Gateway", "511 Network"])
def test_an_error_of_another_server_says_so(link, device, status):
    """`problem` stays "unknown", as before."""
    link.respond = lambda head: response(status, PAGE)
    with pytest.raises(foldlog.ServerProblem) as raised:
        device("a").sync()
    assert (raised.value.status, raised.value.problem) == (int(status[:3]), "unknown")
    assert "not from Foldlog" in device("a").status().why_not


def test_half_an_answer_is_a_broken_connection(link, device):
    """With a length, without one, and in the middle of the JSON."""
    whole = b'{"log":"0","head":9,"events":[],"through":9,'
    for cut in (
        response("200 OK", whole, Content_Type="application/json", Content_Length="4000"),
        response("200 OK", whole, Content_Type="application/json"),
    ):
        link.respond = lambda head, cut=cut: cut
        with pytest.raises(foldlog.Unreachable) as raised:
            device("a").sync()
        assert not isinstance(raised.value, foldlog.NotFoldlog)


def test_a_slow_answer_arrives(link, device):
    """Byte by byte; only silence counts as broken."""
    fill(device("a", link.direct), 3_000, 1_000)
    device("a").sync()
    passes = link._passes
    link._passes = lambda piece, way, *rest: (
        time.sleep(0.05 if way == "down" else 0) or passes(piece, way, *rest)
    )
    device("b").sync()
    assert len(ids_of(device("b"))) == 3


# Signing in.


def gate(accepted: set[bytes]):
    """Answers 401 unless the request has an accepted token."""
    problem = b'{"code": "unauthenticated", "status": 401, "detail": "sign in"}'
    return lambda head: (
        None
        if any(b"Bearer " + token + b"\r\n" in head for token in accepted)
        else response("401 Unauthorized", problem, Content_Type="application/problem+json")
    )


def test_a_new_token_of_the_function_works_at_once(link, device, monkeypatch):
    """The device waits five minutes after a 401, unless the app has another token."""
    monkeypatch.setattr(background, "TOKEN_CHECK_SECONDS_MIN", 0.05)
    current = ["old"]
    link.respond = gate({b"new"})
    a = device("a", token=lambda: current[0])
    a.collection("tasks").put("x", n=1)
    a.start()
    until(lambda: a.status().next_try_seconds)
    requests = len(link.heads)
    time.sleep(0.3)  # the app is asked, the server is not
    assert len(link.heads) == requests
    assert a.status().next_try_seconds > 200
    current[0] = "new"
    until(lambda: a.status().unsent == 0)
    until(lambda: a.status().problem is None)  # the round goes on after the push


def test_the_app_says_that_it_has_signed_in(link, device):
    link.respond = gate({b"new"})
    a = device("a", token="old", keep_syncing=True)
    a.collection("tasks").put("x", n=1)
    until(lambda: a.status().problem is not None)
    a.use_token("new")
    until(lambda: a.status().unsent == 0)
    with pytest.raises(foldlog.BadToken):
        a.use_token("new\n")


def test_a_token_function_that_fails_is_told(link, device, monkeypatch):
    """And asked again."""
    monkeypatch.setattr(background, "TOKEN_CHECK_SECONDS_MIN", 0.05)
    fails = [True]
    a = device("a", token=lambda: 1 / 0 if fails[0] else "ok", keep_syncing=True)
    until(lambda: a.status().problem is not None)
    assert a.status().problem["code"] == "bad-token"
    fails[0] = False
    until(lambda: a.status().problem is None)


SECRET = "s3cr3t-t0k3n"


@pytest.mark.parametrize("bad", [f"{SECRET}\n", f" {SECRET}", f"{SECRET}\x00", f"{SECRET}é", 7])
def test_a_bad_token_is_refused_at_open(tmp_path, bad):
    """And is in no message, no status and no file."""
    with pytest.raises(foldlog.BadToken) as raised:
        foldlog.open(tmp_path / "a.db", space=SPACE, server="http://localhost:9", token=bad)
    assert SECRET not in repr(raised.value) + repr(raised.value.__cause__)
    assert not (tmp_path / "a.db").exists()
    if isinstance(bad, str):
        server = HttpServer("http://localhost:9", SPACE, token=lambda: bad)
        with foldlog.open(tmp_path / "b.db", space=SPACE, server=server, keep_syncing=False) as b:
            with pytest.raises(foldlog.BadToken) as raised:
                b.sync()
            assert SECRET not in repr(raised.value) + repr(b.status())
        assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_a_proxy_that_repeats_the_headers_does_not_leak_the_token(link, device, tmp_path, status):
    def echo(head: bytes) -> bytes:
        body = f'{{"code": "odd", "detail": "Bearer {SECRET}", "you": "{SECRET}"}}'.encode()
        return response(status, body, Content_Type="application/json")

    link.respond = echo
    a = device("a", token=SECRET)
    with pytest.raises(foldlog.ClientError) as raised:
        a.sync()
    told = repr(raised.value) + repr(getattr(raised.value, "document", "")) + repr(a.status())
    assert SECRET not in told
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_bad_url_leaves_the_file_alone(tmp_path):
    """The file keeps the server, and the message has the cure without a password."""
    path = tmp_path / "a.db"
    foldlog.open(path, space=SPACE, server="http://localhost:9", keep_syncing=False).close()
    for url, words in {
        "localhost:3653": "no scheme: use 'https://localhost:3653'",
        "sync.example.com": "no scheme",
        "ftp://x": "no URL",
        "http://": "no URL",
        "http://h:99999": "no URL",
        " http://h": "no URL",
        "https://me:pass@h": "password",
        "https://h/?token=pass": "`?`",
    }.items():
        with pytest.raises(foldlog.BadArgument, match=r"URL|server") as raised:
            foldlog.open(path, server=url)
        assert words in str(raised.value)
        assert ":pass" not in str(raised.value) and "=pass" not in str(raised.value)
    with pytest.raises(foldlog.WrongReplica):
        foldlog.open(path, space="other", server="http://other:9")
    with foldlog.open(path, keep_syncing=False) as again:
        assert again._store.meta.get("server") == "http://localhost:9"


# The file.


@pytest.mark.parametrize("path", [":memory:", "", "file:x?mode=memory", "."])
def test_a_path_that_names_no_file(path):
    with pytest.raises(foldlog.BadArgument):
        foldlog.open(path, space=SPACE)


def test_a_missing_folder(tmp_path):
    with pytest.raises(foldlog.FileUnusable, match="folder must exist"):
        foldlog.open(tmp_path / "no" / "a.db", space=SPACE)


def test_a_read_only_file(tmp_path):
    """Opened, and then made read-only for SQLite, which root's permissions cannot pass."""
    with Replica(tmp_path / "a.db", space=SPACE) as a:
        a.collection("tasks").put("x", n=1)
        a._store.database.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(foldlog.FileUnusable, match="read-only"):
            a.collection("tasks").put("y", n=1)
        assert ids_of(a) == {"x"}


def test_a_full_disk(link, device):
    """The write says so, the file stays whole, and a sync tells the status. Then it goes on."""
    fill(device("b"), 60_000, 1_000, seed=2)
    device("b").sync()
    a = device("a")
    database = a._store.database
    (pages,) = database.connection.execute("PRAGMA page_count").fetchone()
    database.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(foldlog.FileUnusable, match="disk is full"):
        fill(a, 60_000, 10_000)
    with pytest.raises(foldlog.FileUnusable):
        a.sync()
    assert a.status().problem["code"] == "file-unusable"
    database.connection.execute("PRAGMA max_page_count = 1000000")
    a.sync()
    assert a.status().problem is None
    assert ids_of(device("b")) <= ids_of(a)


def test_a_call_after_close(tmp_path):
    a = Replica(tmp_path / "a.db", space=SPACE)
    tasks = a.collection("tasks")
    tasks.put("x", n=1)
    a.close()
    for call in (lambda: tasks.put("y", n=1), lambda: tasks["x"], a.status, a.unsent):
        with pytest.raises(foldlog.ReplicaClosed, match="open it again"):
            call()
    a.close()


def test_a_mistyped_guard_raises_at_the_call(tmp_path):
    with (
        Replica(tmp_path / "a.db", space=SPACE) as a,
        pytest.raises(foldlog.BadArgument, match="unchanged"),
    ):
        a.changeset(guard="unchangd")
