"""Defines the ASGI application that receives every HTTP request of the service.

Flask is used only to declare the routes. `AsgiServer` finds the operation for each request, runs
the operation, and sends the response. A request that waits, for example for its body or for new
events, waits on the event loop and occupies no thread. `AsgiServer` runs under any ASGI server that
provides `raw_path`; `foldlog serve` uses uvicorn.

ASGI 3: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

from foldlog.domain.errors import FoldlogError
from foldlog.domain.names import is_space

from .app import FoldlogApp
from .http.compression import deflated, deflated_once, deflated_pieces, encoding_for
from .http.logging import log_request
from .http.problems import problem_reply
from .http.rates import UNLIMITED_PATH
from .http.replies import Reply
from .http.requests import Message, Receive, Request, Scope, check_given_once
from .http.resources import Resources
from .http.threads import Disconnected
from .routing import Router, path_of

Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Responses contain users' data. These headers tell caches to store nothing of them, and tell
#: browsers to use the declared type, to run and load nothing from them, to refuse to show them
#: inside another page, and to keep them from other sites.
HEADERS = {
    "Cache-Control": "private, no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
#: Responses of up to this size are compressed on the event loop, larger ones in a thread.
COMPRESSED_AT_ONCE_BYTES = 16 * 2**10
#: While this many responses are being compressed or wait for a thread, further large responses
#: are sent uncompressed, because that is quicker than waiting.
COMPRESSING_MAX = 8
#: The status in the log line of a request whose client disconnected while the request waited.
#: nginx uses the same number. It is only logged, because the client has gone.
CLIENT_CLOSED_REQUEST = 499


class _Matched(NamedTuple):
    """Holds the path template and the space of a request, for the log line of the request.
    `template` is `None` if the path is unknown. `space` is `None` if the path names no valid
    space."""

    template: str | None = None
    space: str | None = None


class AsgiServer:
    """Serves an application over ASGI. The context manager `resources` must stay open as long as
    the server is used."""

    def __init__(self, app: FoldlogApp, resources: Resources):
        self.app = app
        self.resources = resources
        self._router = Router(app)

    def end_waiting(self) -> None:
        """Makes all requests that wait for new events respond now, and ends all streams. Call it
        when the service is about to stop."""
        self.resources.log_watches.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"no {scope['type']} is served, only HTTP")
        request = Request(scope, receive, self.resources, self.app.rates)
        try:
            reply, matched = await self._answer(request, scope)
            await self._send(request, matched, reply, send)
        finally:
            request.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Handles the ASGI lifespan messages, with which the web server announces its startup and
        its shutdown. At shutdown the method ends all streams and all requests that wait for new
        events."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.end_waiting()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, request: Request, scope: Scope) -> tuple[Reply, _Matched]:
        matched = _Matched()
        try:
            path = path_of(scope)
            self._count(request, scope, is_limited=path != UNLIMITED_PATH)
            check_given_once(scope["headers"])
            if request.method == "OPTIONS":
                return self._options(request, path), matched
            operation, template, ids = self._router.find(request.method, path)
            space = ids.get("space", "")
            matched = _Matched(template, space if is_space(space) else None)
            return await operation(request, ids, self.app.access), matched
        except Disconnected:
            return Reply(b"", "text/plain", CLIENT_CLOSED_REQUEST), matched
        except Exception as exc:
            return problem_reply(exc, request), matched

    def _count(self, request: Request, scope: Scope, *, is_limited: bool) -> None:
        """Finds the client's IP address and stores it in `request.subject`. If `is_limited` is
        true, the method also counts the request against the rate limit of this address.

        Raises `RateLimited` if the rate limit of the address is used up.
        """
        peer = (scope.get("client") or ("",))[0]
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        request.subject.address = self.app.proxies.client_address(
            peer, b",".join(forwarded).decode("latin-1")
        )
        if is_limited:
            request.rates.check_address(request.subject)

    def _options(self, request: Request, path: bytes) -> Reply:
        """Returns the response to an OPTIONS request. For an allowed CORS preflight request, the
        response has the CORS headers. For any other request, it lists the methods of the path in
        the header `Allow`."""
        allowed = self._router.allowed_methods(path)
        preflight = self.app.cors.preflight(request.method, request.header)
        return preflight or Reply(b"", "text/plain", headers={"Allow": ", ".join(allowed)})

    async def _send(self, request: Request, matched: _Matched, reply: Reply, send: Send) -> None:
        if isinstance(reply.body, bytes):
            try:
                body = await self._compressed(request, reply)
            except FoldlogError as exc:  # no thread became free in time
                reply = problem_reply(exc, request)
                body = reply.content
            request.rates.count_answer(request.subject, len(body))
            # The line is written before the response is sent, so a client that has the response can
            # find the line in the log.
            self._log(request, matched, reply, len(body))
            await send(self._start(request, reply, len(body)))
            await send({"type": "http.response.body", "body": self._shown(request, body)})
            return
        pieces = self._pieces(request, reply)
        await send(self._start(request, reply))
        if request.method == "HEAD":
            await pieces.aclose()  # type: ignore[attr-defined]
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._send_pieces(request, pieces, send)
        self._log(request, matched, reply, None)

    @staticmethod
    def _shown(request: Request, body: bytes) -> bytes:
        return b"" if request.method == "HEAD" else body

    def _start(self, request: Request, reply: Reply, length: int | None = None) -> Message:
        headers = [
            (b"content-type", reply.media_type.encode()),
            (b"x-request-id", request.id.encode()),
            *_encoded(reply.headers),
        ]
        given = {name for name, _ in headers}
        headers += [header for header in _HEADERS if header[0] not in given]
        headers += _encoded(self.app.cors.headers(request.header("origin")))
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        return {"type": "http.response.start", "status": reply.status, "headers": headers}

    async def _compressed(self, request: Request, reply: Reply) -> bytes:
        body = reply.content
        threads = self.resources.compression
        is_small = len(body) <= COMPRESSED_AT_ONCE_BYTES
        may_compress = is_small or threads.load < COMPRESSING_MAX
        accepted = request.header("accept-encoding") if may_compress else ""
        encoding = encoding_for(reply, accepted)
        if encoding is None:
            return body
        if reply.is_kept:
            return deflated_once(body, encoding)
        if is_small:
            return deflated(body, encoding)
        return await threads.run(request.subject.key, deflated, body, encoding)

    def _pieces(self, request: Request, reply: Reply) -> AsyncIterator[bytes]:
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
        except Disconnected:
            pass
        except Exception as exc:
            # The status was sent already. Without its end, no client takes the answer for whole.
            problem_reply(exc, request)
            return
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b""})

    def _log(self, request: Request, matched: _Matched, reply: Reply, length: int | None) -> None:
        log_request(
            request,
            path=matched.template,
            space=matched.space,
            status=reply.status,
            bytes_out=length,
        )


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
