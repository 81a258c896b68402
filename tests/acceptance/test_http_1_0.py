"""A client of HTTP/1.0, such as a proxy with its default settings, gets data without chunks."""

from __future__ import annotations

import gzip
import socket

import httpx
import pytest

from foldlog.infrastructure.memory.store import MemoryStore
from tests.acceptance.live import WAIT_SECONDS, served
from tests.helpers import changeset, push_of, put

SPACE = "/v1/spaces/home"


@pytest.fixture(scope="module")
def service():
    store = MemoryStore()
    for number in range(20):
        changesets = [changeset(put(f"{number}-{i}", x="y" * 3_000)) for i in range(10)]
        store.push("home", push_of(*changesets))
    with served(store) as service:
        yield service


def answer_of(port: int, path: str, *, method: str = "GET", headers: str = "") -> tuple[str, bytes]:
    """Reads until the service closes the connection. Returns the head in lower case, and the
    body."""
    with socket.create_connection(("127.0.0.1", port), WAIT_SECONDS) as connection:
        request = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n"
        connection.sendall(request.encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().lower(), body


@pytest.mark.parametrize("headers", ["", "Accept-Encoding: gzip\r\n"])
@pytest.mark.parametrize("path", [f"{SPACE}/snapshot", f"{SPACE}/events?after=0", "/v1/limits"])
def test_a_body_of_any_length_ends_with_the_connection(service, path, headers):
    head, body = answer_of(service.port, path, headers=headers)
    assert "transfer-encoding" not in head and "connection: close" in head
    if headers and "content-encoding: gzip" in head:
        body = gzip.decompress(body)
    assert body == httpx.get(f"{service.url}{path}").content


def test_a_stream_has_no_chunks(service):
    with socket.create_connection(("127.0.0.1", service.port), WAIT_SECONDS) as connection:
        path = f"{SPACE}/events/stream?after=199"
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"}\n\n"):
            answer += connection.recv(65_536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"retry: 1000\n\nid: 200\n")


def test_problems_and_heads(service):
    head, body = answer_of(service.port, f"{SPACE}/records/tasks/never")
    assert head.startswith("http/1.1 404") and b"unknown-record" in body
    head, body = answer_of(service.port, f"{SPACE}/snapshot", method="HEAD")
    assert "transfer-encoding" not in head and body == b""
