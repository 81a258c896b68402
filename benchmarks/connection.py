"""A minimal HTTP connection, because its cost would distort the measurement."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

from .errors import BenchmarkFailed

ANSWER_SECONDS_MAX = 120.0
END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"

#: A buffer that all connections of the one thread share. A new buffer of this size for each `recv`
#: costs two system calls and zeroed pages: twice as much as the rest of a request.
_BUFFER = bytearray(2**18)
_VIEW = memoryview(_BUFFER)


def request(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    encoding: str = "identity",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a request."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: {encoding}\r\n"
        f"Content-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Answer:
    """An answer. Its maker raises for an error status, unless the caller accepts errors."""

    head: bytes
    body: bytes
    bytes_received: int

    @property
    def is_good(self) -> bool:
        return self.head[9:10] == b"2"

    @property
    def encoding(self) -> str:
        return self.header("content-encoding") or "identity"

    def header(self, name: str) -> str:
        return _header(self.head, name.encode()).decode()


class Connection:
    """A keep-alive connection with one request at a time."""

    __slots__ = ("_is_lenient", "_length", "_received", "sent_at", "socket")

    def __init__(self, port: int, *, is_lenient: bool = False):
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._is_lenient = is_lenient
        self._received = b""
        self._length = 0  #: length of the whole answer if known; -1 for a chunked answer

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> Answer | None:
        """Reads the received bytes. Returns the answer if it is complete, else `None`."""
        size = self.socket.recv_into(_BUFFER)
        if not size:
            raise BenchmarkFailed("the server closed a connection")
        piece = bytes(_VIEW[:size])
        self._received = self._received + piece if self._received else piece
        if not self._length:
            end = self._received.find(END)
            if end < 0:
                return None
            self._length = _length(self._received[:end], end + len(END))
        if self._length < 0:
            return self._take() if self._received.endswith(LAST_CHUNK) else None
        return self._take() if len(self._received) >= self._length else None

    def ask(self, data: bytes) -> Answer:
        """Sends a request and waits for its answer."""
        self.send(data)
        while True:
            answer = self.receive()
            if answer is not None:
                return answer

    def _take(self) -> Answer:
        whole, length = self._received, self._length
        self._received, self._length = b"", 0
        head, _, body = whole.partition(END)
        if length < 0:
            body = _joined(body)
        answer = Answer(head, body, len(whole))
        if not (answer.is_good or self._is_lenient):
            raise BenchmarkFailed(f"{head.decode('latin-1')}\n\n{body[:1_000]!r}")
        return answer


def _length(head: bytes, before: int) -> int:
    length = _header(head, b"content-length")
    if not length and _header(head, b"transfer-encoding") == b"chunked":
        return -1
    return before + int(length or 0)


def _header(head: bytes, name: bytes) -> bytes:
    _, _, rest = head.lower().partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip()


def _joined(chunks: bytes) -> bytes:
    """Joins the chunks of a body."""
    parts: list[bytes] = []
    while True:
        size, _, chunks = chunks.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            return b"".join(parts)
        parts.append(chunks[:length])
        chunks = chunks[length + 2 :]


def fetch(port: int, requests: Iterable[bytes]) -> list[Answer]:
    """Sends requests one after another on one connection."""
    with closing(Connection(port)) as connection:
        return [connection.ask(data) for data in requests]
