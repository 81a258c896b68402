"""Clients that leave at any point: the service frees all that their requests held."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foldlog.api.http.threads import ADMISSION_THREADS, COMPRESSION_THREADS
from foldlog.domain.limits import Limits
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import changeset, new_id, put, until

from .live import Connection, Served, Space, request_of, served

ROOT = Path(__file__).parents[2]
READERS = 4
#: all threads that the requests of a worker may start
POOL_THREADS = READERS + ADMISSION_THREADS + COMPRESSION_THREADS
CLIENTS = 20
ROUNDS = 3


@pytest.fixture(scope="module")
def live():
    limits = Limits(page_snapshot_records=1)
    with served(MemoryStore(limits=limits), limits) as here:
        yield here


@pytest.fixture(scope="module")
def space(live):
    """A space with 2 MB of records, more than the buffers of a connection hold."""
    space = Space(live.port)
    for _ in range(10):
        space.push(changeset(*[put(new_id(), text="x" * 2_000) for _ in range(100)]))
    space.http.close()
    return space.name


def stream(live, space, client):
    client.send(request_of(f"/v1/spaces/{space}/events/stream?after=0"))
    assert client.answer().status == 200


def idle_stream(live, space, client):
    client.send(request_of(f"/v1/spaces/{space}/events/stream?after=10"))
    assert client.answer().status == 200


def wait(live, space, client):
    client.send(request_of(f"/v1/spaces/{space}/events?after=10&wait=30"))


def wait_for_records(live, space, client):
    client.send(request_of(f"/v1/spaces/{space}/records?at_least=11"))


def download(live, space, client):
    client.send(request_of(f"/v1/spaces/{space}/snapshot"))
    next(client.answer().pieces())


def page(live, space, client):
    """Requests three pages, and leaves them unread."""
    client.send(request_of(f"/v1/spaces/{space}/events?limit=10") * 3)


def head(live, space, client):
    client.send(request_of(f"/v1/spaces/{space}/events")[:-2])


def body(live, space, client):
    headers = {"Content-Type": "application/json", "Content-Length": "100000"}
    client.send(request_of(f"/v1/spaces/{space}/changesets", headers, "POST") + b"[" * 50_000)


def chunked_body(live, space, client):
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    client.send(request_of(f"/v1/spaces/{space}/sync", headers, "POST") + b"1000\r\n" + b"[" * 99)


KINDS = [stream, idle_stream, wait, wait_for_records, download, page, head, body, chunked_body]


def is_free(live: Served) -> bool:
    """Whether requests hold no connection, task, watch, thread or byte of a body."""
    pools = (live.resources.reading, live.resources.admission, live.resources.compression)
    return (
        live.is_idle()
        and not live.server.server_state.connections
        and not any(pool.load for pool in pools)
        and not live.resources.bodies.held
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("leave", [Connection.close, Connection.abort])
def test_clients_that_leave_free_threads_and_memory(live, space, kind, leave):
    """Sixty clients leave. The number of threads stays within that of the pools."""
    before = threading.active_count()
    for _ in range(ROUNDS):
        clients = [Connection(live.port) for _ in range(CLIENTS)]
        for client in clients:
            kind(live, space, client)
        until(lambda: len(live.server.server_state.connections) >= CLIENTS)
        for client in clients:
            leave(client)
            Connection.opened.remove(client)
        until(lambda: is_free(live))
    assert threading.active_count() <= before + POOL_THREADS


@pytest.mark.seconds(10)
def test_a_run_of_acceptance_tests_without_xdist_exits():
    """The process of the tests ends, because no thread waits for ever."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
            *("tests/acceptance/test_events.py", "-k", "memory"),
        ],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
