"""An HTTP connection with nothing to it: what it costs is not what is measured."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

from .errors import BenchmarkFailed

RECEIVE_BYTES = 2**18
ANSWER_SECONDS_MAX = 60.0


def request(method: str, path: str, body: bytes = b"", *, encoding: str = "identity") -> bytes:
    """The bytes of a request."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: {encoding}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True)
class Answer:
    """A good answer; the bad ones raise."""

    body: bytes
    encoding: str
    bytes_received: int


class Connection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._received = bytearray()
        self._length = 0  #: of the whole answer, once it is known

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> Answer | None:
        """Takes in what has come: the answer once it is whole, else `None`."""
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise BenchmarkFailed("the server closed a connection")
        self._received += piece
        if not self._length:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return None
            length = _header(bytes(self._received[:end]), b"content-length")
            self._length = end + 4 + int(length or 0)
        return self._take() if len(self._received) >= self._length else None

    def ask(self, data: bytes) -> Answer:
        """Sends a request and waits for its answer."""
        self.send(data)
        while True:
            answer = self.receive()
            if answer is not None:
                return answer

    def _take(self) -> Answer:
        whole, self._received, self._length = bytes(self._received), bytearray(), 0
        head, _, body = whole.partition(b"\r\n\r\n")
        if head[9:12] != b"200":
            raise BenchmarkFailed(f"{head.decode('latin-1')}\n\n{body[:1_000]!r}")
        encoding = _header(head, b"content-encoding") or b"identity"
        return Answer(body, encoding.decode(), len(whole))


def _header(head: bytes, name: bytes) -> bytes:
    _, _, rest = head.lower().partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip()


def fetch(port: int, requests: Iterable[bytes]) -> list[Answer]:
    """One request after another on one connection."""
    with closing(Connection(port)) as connection:
        return [connection.ask(data) for data in requests]
