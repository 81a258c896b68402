"""A proxy on a real socket between a device and the service, which misbehaves as a test asks."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PIECE = 4_096


class Proxy:
    """Forwards connections to a service, and counts the bytes of both directions.

    Attributes:
        url: The URL of the proxy.
        cut_after: Cuts the link each time so many bytes have passed, in both directions together.
        cut_up_after, cut_down_after: The same for one direction of one connection.
        respond: Gets the head of a request, and returns the bytes to answer, or `None` to forward
            the request.
        up, down: The bytes that have passed so far.
        cuts: How often the link was cut.
        heads: The head of each request.
    """

    def __init__(self, target: str):
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.cut_after: int | None = None
        self.cut_up_after: int | None = None
        self.cut_down_after: int | None = None
        self.respond: Callable[[bytes], bytes | None] = lambda head: None
        self.up = self.down = self.cuts = 0
        self.heads: list[bytes] = []
        self._since_cut = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def bytes(self) -> int:
        return self.up + self.down

    def close(self) -> None:
        self._listening.close()
        for each in list(self._open):
            _reset(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # Small buffers, as on a real link: a device is not told that more has left than has.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        self._open.add(client)
        with suppress(OSError):
            first = client.recv(PIECE)
            while first and b"\r\n\r\n" not in first:
                first += client.recv(PIECE)
            if not first or self._responds(first, client):
                return
            service = socket.create_connection(self._target)
            self._open.add(service)
            pair = (client, service)
            down = threading.Thread(
                target=self._pump, args=(service, client, pair, "down"), daemon=True
            )
            down.start()
            if self._passes(first, "up", pair, 0):
                service.sendall(first)
                self._pump(client, service, pair, "up", len(first))
            down.join()

    def _responds(self, piece: bytes, client: socket.socket) -> bool:
        """Answers a request in place of the service, if `respond` says so."""
        self.heads.append(piece.partition(b"\r\n\r\n")[0])
        answer = self.respond(piece)
        if answer is None:
            return False
        with self._lock:
            self.up += len(piece)
            self.down += len(answer)
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(0.5)
        with suppress(OSError):
            while client.recv(PIECE):
                pass
        client.close()
        self._open.discard(client)
        return True

    def _pump(
        self,
        source: socket.socket,
        to: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        way: str,
        passed: int = 0,
    ) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                if piece.startswith((b"GET ", b"POST ")) and self._responds(piece, source):
                    break
                if not self._passes(piece, way, pair, passed):
                    return
                passed += len(piece)
                to.sendall(piece)
        for each in pair:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
            self._open.discard(each)

    def _passes(self, piece: bytes, way: str, pair: tuple[socket.socket, ...], passed: int) -> bool:
        """Counts a piece. Returns `False`, and cuts the link, if its time has come."""
        of_way = self.cut_up_after if way == "up" else self.cut_down_after
        with self._lock:
            setattr(self, way, getattr(self, way) + len(piece))
            self._since_cut += len(piece)
            is_over = self.cut_after is not None and self._since_cut >= self.cut_after
            is_over |= of_way is not None and passed + len(piece) >= of_way
            if is_over:
                self._since_cut = 0
                self.cuts += 1
        if is_over:
            for each in pair:
                _reset(each)
                self._open.discard(each)
        return not is_over


def _reset(each: socket.socket) -> None:
    with suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A shutdown wakes the thread that reads; the close then sends a reset.
        each.shutdown(socket.SHUT_RD)
    each.close()


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


def response(status: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of an HTTP response that closes the connection."""
    fields = {"Content-Type": "text/html", "Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
