"""A client of an ASGI application in this process, with the interface of werkzeug's test client.

Unlike a WSGI client it sends the path as it is written, so a test can send any spelling of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from urllib.parse import quote

import httpx
from flask import Response
from werkzeug.test import EnvironBuilder

from foldlog.api.app import FoldlogApp
from foldlog.api.http.resources import Resources
from foldlog.api.server import AsgiApp, AsgiServer

ANSWER_SECONDS_MAX = 60.0
#: Characters that a path keeps; the rest of a test's text is percent-encoded, as a browser does.
_KEPT = "/%:@!$&'()*+,;=-._~[]"


class EventLoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(ANSWER_SECONDS_MAX)


class Answer(Response):
    """An answer; its body is read when the test asks for it."""

    @property
    def text(self) -> str:
        return self.get_data(as_text=True)


class Exchange:
    """One request and its answer, as the ASGI messages between a server and the application.

    The application continues after a piece of the answer only when the next piece is asked for, as
    with a client whose connection is full.
    """

    def __init__(self, body: Iterable[bytes]):
        self._body = iter(body)
        self._is_sent = False
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._resumed = asyncio.Semaphore(0)
        self._gone = asyncio.Event()
        self._is_held = False  #: the application waits until this piece was read

    async def receive(self) -> dict[str, Any]:
        if not self._is_sent:
            try:
                piece = next(self._body, None)
            except OSError:
                return {"type": "http.disconnect"}
            if piece is not None:
                return {"type": "http.request", "body": piece, "more_body": True}
            self._is_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self._gone.is_set():
            self._messages.put_nowait(dict(message))
            if message.get("more_body"):
                await self._resumed.acquire()

    async def serve(self, server: AsgiApp, scope: dict[str, Any]) -> None:
        try:
            await server(scope, self.receive, self.send)
        finally:
            self._messages.put_nowait(None)

    async def message(self) -> dict[str, Any] | None:
        """The next message of the answer; `None` after its end."""
        if self._is_held:
            self._resumed.release()
        message = await self._messages.get()
        self._is_held = message is not None and message.get("more_body", False)
        return message

    async def leave(self) -> None:
        self._gone.set()
        self._resumed.release()


class AsgiClient:
    """Calls an application on the event loop of another thread."""

    def __init__(self, server: AsgiApp, loop: EventLoopThread):
        self.server = server
        self._loop = loop

    def open(self, path: str, method: str = "GET", **kwargs: Any) -> Answer:
        """Sends one request.

        `kwargs` are those of werkzeug's `EnvironBuilder`. `pieces` is a body that is sent without
        a length, and `peer` is the client's address.
        """
        peer = kwargs.pop("peer", "127.0.0.1")
        pieces = kwargs.pop("pieces", None)
        path, _, query = path.partition("?")
        if query:
            kwargs["query_string"] = query
        builder = EnvironBuilder("/", method=method, **kwargs)
        body = builder.input_stream.read() if builder.input_stream else b""
        headers = [(n.lower().encode(), v.encode("latin-1")) for n, v in builder.headers]
        names = {name for name, _ in headers}
        if b"host" not in names:
            headers.append((b"host", b"localhost"))
        if body and b"content-length" not in names:
            headers.append((b"content-length", b"%d" % len(body)))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": quote(path, safe=_KEPT).encode(),
            "query_string": builder.query_string.encode("latin-1"),
            "root_path": "",
            "headers": headers,
            "client": (peer, 1),
        }
        builder.close()
        return self._loop.run(self._begin(scope, [body] if pieces is None else pieces))

    async def _begin(self, scope: dict[str, Any], body: Iterable[bytes]) -> Answer:
        exchange = Exchange(body)
        task = asyncio.create_task(exchange.serve(self.server, scope))
        start = await exchange.message()
        if start is None:
            await task  # raises what the application raised
            raise AssertionError("the application sent no answer")
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in start["headers"]]
        first = await exchange.message()
        assert first is not None
        if not first.get("more_body"):
            await task
            return Answer([first["body"]], start["status"], headers)
        return Answer(_Pieces(self._loop, exchange, first, task), start["status"], headers)

    def get(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "GET", **kwargs)

    def head(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "HEAD", **kwargs)

    def options(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "OPTIONS", **kwargs)

    def post(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "POST", **kwargs)

    def put(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "PUT", **kwargs)

    def patch(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "PATCH", **kwargs)

    def delete(self, path: str, **kwargs: Any) -> Answer:
        return self.open(path, "DELETE", **kwargs)


class _Pieces:
    """The pieces of an answer that is read while it is made."""

    def __init__(
        self,
        loop: EventLoopThread,
        exchange: Exchange,
        first: dict[str, Any],
        task: asyncio.Task[None],
    ):
        self._loop = loop
        self._exchange = exchange
        self._message: dict[str, Any] | None = first
        self._task = task

    def __iter__(self) -> Iterator[bytes]:
        while self._message is not None:
            if piece := self._message.get("body", b""):
                yield piece
            self._message = self._loop.run(self._exchange.message())

    def close(self) -> None:
        """Disconnects, and returns when the application has finished."""
        self._message = None
        self._loop.run(self._leave())

    async def _leave(self) -> None:
        await self._exchange.leave()
        await asyncio.wait((self._task,), timeout=ANSWER_SECONDS_MAX)


class AsgiTransport(httpx.BaseTransport):
    """Carries the requests of an httpx client to an application in this process."""

    def __init__(self, client: AsgiClient):
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        path = url.raw_path.decode().partition("?")[0]
        headers = [(name.decode(), value.decode("latin-1")) for name, value in request.headers.raw]
        answer = self._client.open(
            path,
            request.method,
            query_string=url.query.decode(),
            data=request.read(),
            headers=headers,
        )
        return httpx.Response(
            answer.status_code, headers=list(answer.headers), stream=_Stream(answer)
        )


class _Stream(httpx.SyncByteStream):
    def __init__(self, answer: Answer):
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.response  # type: ignore[misc]

    def close(self) -> None:
        self._answer.close()


@cache
def _shared() -> tuple[EventLoopThread, Resources]:
    return EventLoopThread(), Resources(4)


def asgi_client(app: FoldlogApp) -> AsgiClient:
    """A client of an application. All applications of a test process share a loop and threads."""
    loop, resources = _shared()
    return AsgiClient(AsgiServer(app, resources), loop)


def asgi_transport(app: FoldlogApp) -> AsgiTransport:
    return AsgiTransport(asgi_client(app))
