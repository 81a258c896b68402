"""The service on a real socket, in a thread; and clients that see each byte of it."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import httpx

from foldlog.api.app import FoldlogApp, create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.resources import Resources
from foldlog.api.server import AsgiServer
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import EventStore
from foldlog.scripts.server.sockets import listen
from foldlog.scripts.server.web import server_of
from tests.helpers import A, new_id, until

SENT_AT = "2026-11-23T09:00:00.000Z"
WAIT_SECONDS = 10.0


class Served:
    """A web worker in this process. `port` is where it listens."""

    def __init__(
        self,
        store: EventStore,
        limits: Limits,
        resources: Resources,
        app: FoldlogApp | None = None,
    ):
        self.store = store
        self.app = app or create_app(
            store=store, master=store, ready=dict, limits=limits, access=OpenAccess()
        )
        self.resources = resources
        self.server = server_of(AsgiServer(self.app, resources))
        [listening] = listen("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        self._thread.start()
        until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"

    def is_idle(self) -> bool:
        """Whether no request waits, and the server keeps no state of one."""
        state = self.server.server_state
        return not (self.resources.log_watches._spaces or state.tasks)

    def is_waited_for(self, count: int) -> bool:
        """Whether so many requests wait for new events of a space."""
        return (
            sum(len(space.watches) for space in self.resources.log_watches._spaces.values())
            == count
        )


@contextmanager
def served(
    store: EventStore, limits: Limits = LIMITS, app: FoldlogApp | None = None
) -> Iterator[Served]:
    with Resources(4, limits) as resources:
        here = Served(store, limits, resources, app)
        try:
            yield here
        finally:
            Connection.close_all()
            here.stop()


class Space:
    """A space of the test's own, by HTTP."""

    def __init__(self, port: int, name: str | None = None):
        self.port = port
        self.name = name or f"space-{new_id()}"
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/v1/spaces/{self.name}/", timeout=WAIT_SECONDS
        )
        Connection.opened.append(self.http)

    def push(self, *changesets: dict, device: str = A) -> dict:
        body = {"device": device, "sent_at": SENT_AT, "changesets": changesets}
        answer = self.http.post("changesets", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, query: str = "", *, port: int | None = None, **kwargs: Any) -> Stream:
        path = f"/v1/spaces/{self.name}/events/stream?{query}"
        return Stream(port or self.port, path, **kwargs)


class Message(NamedTuple):
    id: int | None
    kind: str  #: `message`, `problem`, or `comment`
    data: bytes

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in json.loads(self.data)["events"]]


def request_of(path: str, headers: dict[str, str] | None = None, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()


class Answer:
    """One answer on a connection, read as far as one likes."""

    def __init__(self, file):
        line = file.readline()
        if not line:
            raise ConnectionError("no answer")
        self.status = int(line.split()[1])
        self.headers: dict[str, str] = {}
        while (line := file.readline().strip()) or not self.headers:
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        self._file = file
        #: the body ended as HTTP says, so the response is complete
        self.is_whole = False

    def body(self) -> bytes:
        return b"".join(self.pieces())

    def json(self) -> Any:
        return json.loads(self.body())

    def pieces(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding") != "chunked":
            yield self._file.read(int(self.headers.get("content-length", 0)))
            self.is_whole = True
            return
        while line := self._file.readline():
            piece = self._file.read(int(line, 16))
            if self._file.readline() != b"\r\n":
                return
            if not piece:
                self.is_whole = True
                return
            yield piece


class Connection:
    """A client on a socket of its own."""

    #: of this test, httpx's too
    opened: ClassVar[list[Connection | httpx.Client]] = []

    def __init__(self, port: int, *, rcvbuf: int | None = None, timeout: float = WAIT_SECONDS):
        self.sock = socket.socket()
        if rcvbuf is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self._file = self.sock.makefile("rb")
        self.opened.append(self)

    @classmethod
    def close_all(cls) -> None:
        while cls.opened:
            cls.opened.pop().close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> Answer:
        return Answer(self._file)

    def is_closed(self) -> bool:
        """Waits for the other side to close."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def abort(self) -> None:
        """As a client that is killed, or whose phone changes networks."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class Stream(Connection):
    """Server-Sent Events, read by the letter."""

    def __init__(
        self, port: int, path: str, *, headers: dict[str, str] | None = None, **kwargs: Any
    ):
        super().__init__(port, **kwargs)
        self.send(request_of(path, headers))
        self.head = self.answer()
        self.retry_ms: int | None = None
        self._blocks = self._read() if self.head.status == 200 else iter(())

    def _read(self) -> Iterator[Message]:
        rest = b""
        for piece in self.head.pieces():
            *blocks, rest = (rest + piece).split(b"\n\n")
            for block in blocks:
                fields: dict[bytes, bytes] = {}
                for line in block.split(b"\n"):
                    name, colon, value = line.partition(b":")
                    assert colon and name not in fields, block
                    fields[name] = value.removeprefix(b" ")
                if b"retry" in fields:
                    self.retry_ms = int(fields.pop(b"retry"))
                elif b"" in fields:
                    yield Message(None, "comment", fields.pop(b""))
                else:
                    id = fields.pop(b"id", None)
                    kind = fields.pop(b"event", b"message").decode()
                    yield Message(id and int(id), kind, fields.pop(b"data"))
                assert not fields, block
        assert not rest or not self.head.is_whole

    def next(self) -> Message:
        """Returns the next message, and skips comments."""
        return next(message for message in self._blocks if message.kind != "comment")

    def all(self) -> list[Message]:
        """Everything, comments too, to the end of the stream."""
        return list(self._blocks)

    def seqs(self, count: int) -> list[int]:
        """The seqs of the next events, so many of them."""
        found: list[int] = []
        while len(found) < count:
            found += self.next().seqs
        return found
