"""The door on an event loop: the calls that are made most, and those that wait.

In front of Flask, whose routing and request objects take longer than all that a push needs, and
which would need a thread for each client that waits. It knows a few paths; whatever is not exactly
one of those goes on to Flask, a wrong name or method too. What a call does is said once, in the
`Operation` that both doors call, with the same reading, the same refusals and the same log.

ASGI 3, as uvicorn speaks it: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    MutableMapping,
)
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from foldlog.api.http.compression import deflated, deflated_pieces, encoding_for
from foldlog.api.http.logging import log_request
from foldlog.api.http.problems import problem_reply
from foldlog.api.http.rates import UNLIMITED_PATH
from foldlog.api.http.replies import Reply
from foldlog.api.http.requests import LogWatch, Request, check_given_once
from foldlog.api.http.threads import Threads
from foldlog.domain.errors import FoldlogError, RateLimited, StorageUnavailable
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.names import is_space
from foldlog.domain.ports import EventStore

from .flask_door import HEADERS, FlaskDoor
from .operation import Operation
from .whole_bodies import WholeBodies

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: (method, what follows the space in a path) -> Flask's name of the operation
CALLS = {
    ("POST", "changesets"): "sync.push",
    ("POST", "sync"): "sync.sync",
    ("GET", "events"): "events.events",
    ("GET", "events/stream"): "events.stream",
    ("GET", "snapshot"): "snapshot.snapshot",
}
#: (method, path) of what is asked just when the threads may all be waiting for the database
HEALTH = {("GET", "/healthz"): "meta.healthz", ("GET", "/readyz"): "meta.readyz"}
_PATH = re.compile(r"/v1/spaces/([^/]+)/(.+)")
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
#: What was not done after so long, or not even begun, is not waited for: a thread gives up on the
#: database sooner, so that there were too few of them.
RUN_SECONDS_MAX = 10.0
#: smaller answers are compressed at once, larger ones in a thread while the loop goes on
COMPRESSED_AT_ONCE_BYTES = 16 * 2**10
#: While so many are compressed, or wait for it, an answer goes as it is: sooner than it would by
#: waiting for its turn.
COMPRESSING_MAX = 8


class AsgiServer:
    """An ASGI app that answers `CALLS`, and hands on all else to `others`."""

    def __init__(
        self,
        app: FlaskDoor,
        others: AsgiApp,
        threads: Threads,
        *,
        limits: Limits = LIMITS,
    ):
        self._others = others
        self._body_bytes_max = limits.body_bytes_max
        self._bodies = WholeBodies(limits.small_body_bytes_max)
        self._compressing = 0  #: answers that are being compressed, or wait for it
        self._cors = app.cors
        self._rates = app.rates
        self._access = app.access
        self._proxies = app.proxies
        self._threads = threads
        self._waiters = Waiters()
        self._calls = {
            (method, name): (
                cast(Operation, app.view_functions[endpoint]),
                f"/v1/spaces/{{space}}/{name}",
            )
            for (method, name), endpoint in CALLS.items()
        }
        self._health = {
            call: cast(Operation, app.view_functions[endpoint]) for call, endpoint in HEALTH.items()
        }

    def end_waiting(self) -> None:
        """The service stops: everybody who waits is answered, and every stream ends."""
        self._waiters.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        call = self._calls.get((scope["method"], found[2])) if found else None
        if found is not None and scope["method"] == "OPTIONS":
            request = self._request(scope, receive, self._threads.reading)
            if reply := self._cors.preflight("OPTIONS", request.header):
                try:
                    self._hold(request, scope)
                except RateLimited as exc:
                    reply = problem_reply(exc, request)
                await self._send_whole(request, None, None, reply, send)
                return
        path: dict[str, str] = {}
        if found is not None and call is not None and is_space(found[1]):
            operation, template = call
            path["space"] = found[1]
        elif scope["type"] == "http" and (scope["method"], scope["path"]) in self._health:
            operation, template = self._health[scope["method"], scope["path"]], scope["path"]
        else:
            await self._hand_on(scope, receive, send)
            return
        space = path.get("space")
        threads = self._threads.admission if space is None else self._threads.reading
        request = self._request(scope, receive, threads)
        try:
            self._hold(request, scope)
            check_given_once(scope["headers"])
            reply = await operation(request, path, self._access)
        except Exception as exc:
            reply = problem_reply(exc, request)
        if isinstance(reply.body, bytes):
            await self._send_whole(request, template, space, reply, send)
        else:
            pieces = self._pieces(request, reply)
            await send(self._start(request, reply))
            await self._send_pieces(request, pieces, send)
            self._log(request, template, space, reply, None)

    def _request(self, scope: Scope, receive: Receive, threads: ThreadPoolExecutor) -> LoopRequest:
        admission, bytes_max = self._threads.admission, self._body_bytes_max
        return LoopRequest(scope, receive, threads, admission, self._waiters, bytes_max)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        request = self._request(scope, receive, self._threads.reading)
        with self._bodies.body_of(request, scope, receive) as body:
            try:
                self._hold(request, scope)
                await body.read()
            except FoldlogError as exc:
                await self._send_whole(request, None, None, problem_reply(exc, request), send)
            else:
                await self._others(scope, body.receive, send)

    async def _send_whole(
        self, request: LoopRequest, path: str | None, space: str | None, reply: Reply, send: Send
    ) -> None:
        body = await self._compressed(request, reply)
        request.rates.count_answer(request, len(body))
        # Before it is sent: whoever has the answer finds its line in the log.
        self._log(request, path, space, reply, len(body))
        await send(self._start(request, reply, len(body)))
        await send({"type": "http.response.body", "body": body})

    def _hold(self, request: Request, scope: Scope) -> None:
        """To what its client may ask for. Raises `RateLimited`."""
        peer = (scope.get("client") or ("",))[0]
        told = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        address = self._proxies.client_address(peer, b",".join(told).decode("latin-1"))
        request.hold_to(self._rates, address, is_counted=scope["path"] != UNLIMITED_PATH)

    def _log(
        self,
        request: Request,
        path: str | None,
        space: str | None,
        reply: Reply,
        bytes_out: int | None,
    ) -> None:
        log_request(request, path=path, space=space, status=reply.status, bytes_out=bytes_out)

    def _start(self, request: Request, reply: Reply, length: int | None = None) -> Message:
        headers = [
            (b"content-type", reply.media_type.encode()),
            *_HEADERS,
            (b"x-request-id", request.id.encode()),
            *_encoded(reply.headers),
            *_encoded(self._cors.headers(request.header("origin"))),
        ]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        return {"type": "http.response.start", "status": reply.status, "headers": headers}

    async def _compressed(self, request: LoopRequest, reply: Reply) -> bytes:
        body = reply.body
        assert isinstance(body, bytes)
        is_small = len(body) <= COMPRESSED_AT_ONCE_BYTES
        may_compress = is_small or self._compressing < COMPRESSING_MAX
        accepted = request.header("accept-encoding") if may_compress else ""
        encoding = encoding_for(reply, accepted)
        if encoding is None:
            return body
        if is_small:
            return deflated(body, encoding)
        self._compressing += 1
        try:
            return await request.run_in(self._threads.compression, deflated, body, encoding)
        finally:
            self._compressing -= 1

    def _pieces(self, request: LoopRequest, reply: Reply) -> AsyncIterator[bytes]:
        assert not isinstance(reply.body, bytes)
        if isinstance(reply.body, AsyncIterator):
            return reply.body
        encoding = encoding_for(reply, request.header("accept-encoding"))
        pieces = reply.body if encoding is None else deflated_pieces(reply.body, encoding)
        return request.read_in_threads(pieces)

    async def _send_pieces(
        self, request: Request, pieces: AsyncIterator[bytes], send: Send
    ) -> None:
        try:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as exc:
            problem_reply(exc, request)  # it has begun well: all that can be done is to note it
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b""})


def _encoded(headers: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    return ((name.lower().encode(), value.encode()) for name, value in headers.items())


class LoopRequest(Request):
    """A request that waits on the event loop; what takes a thread goes to a few of them."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        threads: ThreadPoolExecutor,
        admission: ThreadPoolExecutor,
        waiters: Waiters,
        bytes_max: int,
    ):
        self.method = scope["method"]
        self.query_string = scope["query_string"]
        self._headers = dict(scope["headers"])
        self._receive = receive
        self._threads = threads
        self._admission = admission
        self._waiters = waiters
        self._bytes_max = bytes_max
        super().__init__()

    def header(self, name: str) -> str:
        value: bytes = self._headers.get(name.encode(), b"")
        return value.decode("latin-1")

    async def pieces(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has gone")
            if piece := message.get("body", b""):
                yield piece
            more = message.get("more_body", False)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        return await self.run_in(self._threads, function, *args)

    async def look_up(self, function: Callable[..., T], *args: Any) -> T:
        return await self.run_in(self._admission, function, *args)

    async def run_in(
        self, threads: ThreadPoolExecutor, function: Callable[..., T], *args: Any
    ) -> T:
        context = contextvars.copy_context()  # what is logged there, too, says whose way it is
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(threads, context.run, function, *args)
        await asyncio.wait((running,), timeout=RUN_SECONDS_MAX)
        if not running.done():
            running.cancel()
            raise StorageUnavailable()
        try:
            return running.result()
        finally:
            # An error names this frame, which named the error: with all that it has in its hands,
            # a body say, both would stay until garbage is collected.
            del running

    async def pause(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return not self._waiters.is_ending

    async def outcome(self, future: Future[T]) -> T:
        return await asyncio.wrap_future(future)

    async def read_in_threads(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """No thread is held while a slow client takes its time with a piece, and nothing more is
        read for one that has gone. Raises what `Access.admit` raises: however long it takes, nobody
        is told what was read after they were revoked."""
        gone = asyncio.ensure_future(self._gone())
        try:
            while not gone.done() and (piece := await self.run(next, pieces, b"")):
                await self.readmit()
                yield piece
        finally:
            gone.cancel()

    def watch(self, store: EventStore, space: str) -> LogWatch:
        return _LoopLogWatch(self._waiters, store, space, self._gone())

    async def _gone(self) -> None:
        """Returns when the client has gone, or sends more than any body may hold, to nobody."""
        while self.bytes_in <= self._bytes_max:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            self.bytes_in += len(message.get("body", b""))


class Waiters:
    """Who waits on this loop for which space: one watch of the store for all of a space."""

    def __init__(self) -> None:
        self._spaces: dict[str, _Space] = {}
        self.is_ending = False

    def join(self, store: EventStore, space: str, waiter: _LoopLogWatch) -> _Space:
        joined = self._spaces.get(space)
        if joined is None:
            joined = self._spaces[space] = _Space(store, space)
        joined.waiters.add(waiter)
        return joined

    def leave(self, joined: _Space, waiter: _LoopLogWatch) -> None:
        joined.waiters.discard(waiter)
        if not joined.waiters:
            joined.unwatch()
            del self._spaces[joined.space]

    def end(self) -> None:
        self.is_ending = True
        for joined in self._spaces.values():
            joined.wake()


class _Space:
    def __init__(self, store: EventStore, space: str):
        self.space = space
        self.waiters: set[_LoopLogWatch] = set()
        self.version = 0
        self._loop = asyncio.get_running_loop()
        self._is_called = False
        self.unwatch = store.watch(space, self._call)

    def _call(self) -> None:
        """From any thread. However often it grows before the loop's next turn, it wakes once."""
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._called)

    def _called(self) -> None:
        self._is_called = False
        self.wake()

    def wake(self) -> None:
        self.version += 1
        for waiter in list(self.waiters):
            waiter.wake()


class _LoopLogWatch(LogWatch):
    def __init__(
        self,
        waiters: Waiters,
        store: EventStore,
        space: str,
        gone: Coroutine[Any, Any, None],
    ):
        self._waiters = waiters
        self._joined = waiters.join(store, space, self)
        self._seen = self._joined.version
        self._waiting: asyncio.Future[None] | None = None
        self._gone = asyncio.ensure_future(gone)
        self._gone.add_done_callback(lambda _: self.wake())

    async def wait(self, seconds: float) -> bool:
        if self._seen == self._joined.version and not self.is_over and seconds > 0:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(seconds, self.wake)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        grown = self._seen != self._joined.version
        self._seen = self._joined.version
        return grown

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    @property
    def is_over(self) -> bool:
        return self._gone.done() or self._waiters.is_ending

    def close(self) -> None:
        self._gone.cancel()
        self._waiters.leave(self._joined, self)
