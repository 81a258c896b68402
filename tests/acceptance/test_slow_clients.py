"""Who takes his time with a request, or opens too many connections, is cut off; nobody else is."""

from __future__ import annotations

import random
import socket
import threading
import time
from base64 import b64encode
from contextlib import suppress

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.resources import Resources
from foldlog.api.server import AsgiServer
from foldlog.domain.limits import Limits
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.scripts.server.protocol import Connections
from foldlog.scripts.server.sockets import listen
from foldlog.scripts.server.web import server_of
from tests.helpers import changeset, push_of, put

from .live import WAIT_SECONDS, until

LIMITS = Limits(
    head_seconds_max=1,
    body_pace_seconds=1,
    body_bytes_per_second_min=100,
    connections_per_address_max=3,
    unread_seconds_max=1,
)
PUSH = (
    b"POST /v1/spaces/s/changesets HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
)


def base64_of(count: int) -> str:
    return b64encode(random.randbytes(count * 3 // 4)).decode()


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def port():
    store = MemoryStore()
    for n in range(40):  # more than the system keeps of an answer that nobody reads
        store.push("large", push_of(changeset(put(str(n), x=base64_of(300_000)))))
    app = create_app(store=store, master=store, ready=dict, limits=LIMITS, access=OpenAccess())
    with Resources(2) as resources:
        server = server_of(AsgiServer(app, resources), Connections(LIMITS))
        [listening] = listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        until(lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def connect(port):
    opened = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", port), WAIT_SECONDS))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return received


@pytest.mark.parametrize("begun", [HEALTH[:20], PUSH, PUSH + b'{"device":'])
def test_a_request_that_does_not_go_on_is_ended(connect, begun):
    """In a head, before a body, in a body: told, and closed."""
    slow = connect()
    slow.sendall(begun)
    assert all_of(slow).startswith(b"HTTP/1.1 408 ")


def test_a_byte_now_and_then_is_too_slow(connect):
    """Never silent for long, and never done."""
    slow, began = connect(), time.monotonic()
    slow.sendall(PUSH)
    slow.settimeout(0.1)
    answer = b""
    while not answer:
        assert time.monotonic() - began < WAIT_SECONDS
        slow.sendall(b" ")
        try:
            answer = slow.recv(65_536)
        except TimeoutError:
            continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_comes_at_its_pace_is_taken(connect):
    """However long it takes in all."""
    steady = connect()
    steady.sendall(PUSH)
    for _ in range(5):
        steady.sendall(b" " * 200)
        time.sleep(0.4)
    assert steady.recv(65_536).startswith(b"HTTP/1.1 400 ")  # it is no JSON


@pytest.mark.parametrize("path", ["snapshot", "events/stream?limit=1", "events"])
def test_an_answer_that_nobody_reads_is_cut_off(connect, path):
    """A snapshot, of which each holds a thread; a stream; a page."""
    lazy = connect()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)  # no more than that
    lazy.sendall(b"GET /v1/spaces/large/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
    time.sleep(3)
    received = 0
    with suppress(ConnectionError):
        while piece := lazy.recv(65_536):
            received += len(piece)
    assert 0 < received < 7_000_000


def test_an_answer_that_is_read_slowly_comes_whole(connect):
    slow = connect()
    slow.sendall(
        b"GET /v1/spaces/large/snapshot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    received = 0
    while piece := slow.recv(2**20):
        received += len(piece)
        time.sleep(0.15)
    assert received > 40 * 300_000


def test_between_two_requests_a_connection_may_rest(connect):
    resting = connect()
    for _ in range(2):
        resting.sendall(HEALTH)
        assert resting.recv(65_536).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5)


def test_an_address_has_so_many_connections_and_no_more(connect):
    """The next one is closed without a word; those that are there go on."""
    there = [connect() for _ in range(3)]
    for connection in there:
        connection.sendall(HEALTH)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
    one_too_many = connect()
    try:
        one_too_many.sendall(HEALTH)
        assert all_of(one_too_many) == b""
    except ConnectionError:
        pass
    there[0].sendall(HEALTH)
    assert there[0].recv(65_536).startswith(b"HTTP/1.1 200 ")


POST = b"POST /v1/spaces/s/changesets HTTP/1.1\r\nContent-Type: application/json\r\n"
HIDDEN = b"GET /v1/limits HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(HIDDEN)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + b"Host: x\r\n" + LENGTH + b"Connection: upgrade\r\nUpgrade: h2c\r\n", 400),
        (POST + b"Host: x\r\n" + LENGTH + b"Connection: upgrade\r\nUpgrade: websocket\r\n", 400),
        (POST + b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        (POST + LENGTH, 400),
        (POST + LENGTH + b"Host: x\r\nHost: y\r\n", 400),
    ],
)
@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_body_is_never_taken_for_a_request(connect, head, status, is_at_once):
    """What others could read otherwise is refused, and nothing that comes after it is answered."""
    connection = connect()
    with suppress(ConnectionError):
        if is_at_once:
            connection.sendall(head + b"\r\n" + HIDDEN * 2)
        else:
            connection.sendall(head + b"\r\n")
            time.sleep(0.1)
            connection.sendall(HIDDEN * 2)
    with suppress(ConnectionError):
        answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1 ") == 1


def test_an_upgrade_that_we_do_not_know_is_passed_over(connect):
    """As RFC 9110 section 7.8 has it: what has no body is answered as ever."""
    connection = connect()
    connection.sendall(HEALTH[:-2] + b"Connection: upgrade, close\r\nUpgrade: h2c\r\n\r\n")
    assert all_of(connection).startswith(b"HTTP/1.1 200 ")
