"""Defines `Request`, which gives operations the headers and the body of an HTTP request, and all
ways to wait.

Requests wait on the event loop. A call that needs a thread runs in a small pool that all requests
share, and uses its thread only until the call returns.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

from foldlog.domain.access import Caller
from foldlog.domain.errors import InvalidRequest
from foldlog.domain.ports import EventStore

from .log_watch import LogWatch
from .rates import NO_RATES, STREAMS, Lease, Rates, RateSubject
from .resources import Resources
from .threads import Disconnected

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
#: How long the next piece of a running download waits for a thread, in seconds. It is longer than
#: for a new call, because a timeout would interrupt the download.
PIECE_SECONDS_MAX = 30.0


class Request:
    """One HTTP request, made from an ASGI scope. The server closes it after the response."""

    def __init__(
        self, scope: Scope, receive: Receive, resources: Resources, rates: Rates = NO_RATES
    ):
        self.started = time.perf_counter()
        self.method: str = scope["method"]
        self.query_string: bytes = scope["query_string"]
        self._headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self.resources = resources
        self.rates = rates
        #: the client that this request counts for
        self.subject = RateSubject()
        self._caller: Caller | None = None
        #: Finds the caller again and checks that the caller still has the right to this operation:
        #: `Access.admit` with this request's space and right. Set by the operation.
        self.readmit: Callable[..., Awaitable[None]]
        given = self.header("x-request-id")
        self.id = given if given and _SANE_ID.fullmatch(given) else _new_id()
        # Bound to this task, so that every log line about the request has the id.
        structlog.contextvars.bind_contextvars(request_id=self.id)
        self.bytes_in = 0
        self.problem: str | None = None  #: the code of the problem in the response
        self._disconnected: asyncio.Task[None] | None = None

    @property
    def caller(self) -> Caller | None:
        """The caller of the request, or `None` before the access check."""
        return self._caller

    @caller.setter
    def caller(self, caller: Caller) -> None:
        self._caller = caller
        self.subject.caller = caller.id or ""

    def header(self, name: str) -> str:
        """Returns the value of a header, or an empty text if it is absent. Give the name in lower
        case."""
        return self._headers.get(name.encode(), b"").decode("latin-1")

    def hold(self, limit: str = STREAMS) -> Lease:
        """Returns a lease for one more open stream or download of this client; `limit` names the
        limit.

        Raises `RateLimited` if the client has too many open.
        """
        return self.rates.hold(self.subject, limit)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the body in pieces as they arrive. Raises `Disconnected` if the client
        disconnects."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            if piece := message.get("body", b""):
                yield piece
            more = message.get("more_body", False)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a function in a thread, because it waits for the database or takes long to compute.

        Call it only after the body has been read, because bytes of the body that arrive while the
        call waits for a thread are discarded. Raises the errors of `FairThreads.run`.
        """
        return await self.resources.reading.run(
            self.subject.key, function, *args, abandoned=self.disconnected
        )

    async def look_up(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a function in one of the threads that are reserved for access checks, so that reads
        of other requests cannot delay it."""
        return await self.resources.admission.run(self.subject.key, function, *args)

    async def pause(self, seconds: float) -> bool:
        """Waits for `seconds`. Returns `False` if the client has disconnected or the service stops,
        and `True` otherwise."""
        await asyncio.wait((self.disconnected(),), timeout=seconds)
        return not self.disconnected().done() and not self.resources.log_watches.is_ending

    async def outcome(self, future: Future[T]) -> T:
        """Waits on the event loop for the result of a future that another thread completes."""
        return await asyncio.wrap_future(future)

    def watch(self, store: EventStore, space: str) -> LogWatch:
        return LogWatch(self.resources.log_watches, store, space, self.disconnected())

    async def read_in_threads(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yields the pieces of a download until the client disconnects. Each piece is read in a
        thread.

        The thread is free while the client receives the piece. The caller is checked again before
        each piece is sent, so a revocation ends the download. Raises the errors of `run` and of
        `Access.admit`.
        """
        gone = self.disconnected()
        while not gone.done():
            piece = await self.resources.reading.run(
                self.subject.key,
                next,
                pieces,
                b"",
                seconds_max=PIECE_SECONDS_MAX,
                abandoned=self.disconnected,
            )
            if not piece:
                return
            await self.readmit()
            yield piece

    def disconnected(self) -> asyncio.Future[None]:
        """Returns a future that is done when the client has disconnected.

        The future is also done if the client sends more bytes than a body may have.
        """
        if self._disconnected is None:
            self._disconnected = asyncio.ensure_future(self._until_disconnected())
        return self._disconnected

    async def _until_disconnected(self) -> None:
        while self.bytes_in <= self.resources.limits.body_bytes_max:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            self.bytes_in += len(message.get("body", b""))

    def close(self) -> None:
        if self._disconnected is not None:
            self._disconnected.cancel()


#: Headers that a request may have only once. With two of them, a proxy might use the first and
#: this service the second.
_GIVEN_ONCE = (b"authorization", b"content-encoding", b"content-length", b"content-type")


def check_given_once(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises `InvalidRequest` if a header such as `Content-Length` is given more than once."""
    if len(dict(headers)) < len(headers):
        names = [name for name, _ in headers]
        for name in _GIVEN_ONCE:
            if names.count(name) > 1:
                raise InvalidRequest(f"the header {name.decode()} is given more than once")


def _new_id() -> str:
    """Returns a random request id of 16 hex digits.

    A serial number would reveal how many requests other clients send. The id is public, so Python's
    fast generator is sufficient; the generator of the operating system would cost a system call for
    each request.
    """
    return f"{random.getrandbits(64):016x}"
