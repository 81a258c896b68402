"""Defines the class `Request`, with which an operation reads the headers and the body of an HTTP
request, waits, and calls functions in a thread.

Requests wait on the event loop, where waiting needs no thread. A call that blocks runs in a small
pool of threads that all requests share, and uses its thread only until the call returns.
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
    """One HTTP request, made from an ASGI scope. The server closes the request after it has sent
    the response."""

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
        """Returns the caller of the request, or `None` before the access check."""
        return self._caller

    @caller.setter
    def caller(self, caller: Caller) -> None:
        self._caller = caller
        self.subject.caller = caller.id or ""

    def header(self, name: str) -> str:
        """Returns the value of a header, or an empty text if the request lacks the header. `name`
        must be in lower case."""
        return self._headers.get(name.encode(), b"").decode("latin-1")

    def hold(self, limit: str = STREAMS) -> Lease:
        """Returns a lease that allows this client one more open stream or download. `limit` is the
        name of the limit: `STREAMS` or `DOWNLOADS`.

        Raises `RateLimited` if the client already has the maximum number open.
        """
        return self.rates.hold(self.subject, limit)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the request body in pieces as they arrive. Raises `Disconnected` if the client
        disconnects before the end of the body."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            if piece := message.get("body", b""):
                yield piece
            more = message.get("more_body", False)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function(*args)` in a thread and returns its result. Use it for functions that wait
        for the database or take long to compute.

        Call it only after the request body has been read: bytes of the body that arrive while the
        call waits for a thread are lost. Raises `StorageUnavailable` if the wait for a thread and
        the function together take longer than `RUN_SECONDS_MAX` seconds. Raises `Disconnected` if
        the client disconnects while the call waits for a thread.
        """
        return await self.resources.reading.run(
            self.subject.key, function, *args, abandoned=self.disconnected
        )

    async def run_change(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function(*args)` in a thread and returns its result. Use it for functions that
        change data: once the function has begun, the method waits until the function ends.

        Only the wait for a thread has a time limit. If no thread is free within `RUN_SECONDS_MAX`
        seconds, the method raises `StorageUnavailable`. If the client disconnects during this wait,
        the method raises `Disconnected`. In both cases the function was not called.
        """
        return await self.resources.reading.run(
            self.subject.key, function, *args, runs_to_end=True, abandoned=self.disconnected
        )

    async def look_up(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function(*args)` in a thread and returns its result. Use it for access checks and
        public operations. These have a separate pool of threads, so slow reads of other requests
        cannot delay them. Raises `StorageUnavailable` as `run` does, and `Disconnected` for a
        request with the method GET or HEAD."""
        # While a body may still arrive, its bytes must not be discarded.
        has_body = self.method not in ("GET", "HEAD")
        return await self.resources.admission.run(
            self.subject.key,
            function,
            *args,
            abandoned=None if has_body else self.disconnected,
        )

    async def pause(self, seconds: float) -> bool:
        """Waits for `seconds`, or until the client disconnects. Returns `False` if the client has
        disconnected or the service is stopping, otherwise `True`."""
        await asyncio.wait((self.disconnected(),), timeout=seconds)
        return not self.disconnected().done() and not self.resources.log_watches.is_ending

    async def outcome(self, future: Future[T]) -> T:
        """Waits for a future that another thread completes, and returns the result of the future.
        The wait is on the event loop and has no time limit. If the future has an exception, the
        method raises this exception."""
        return await asyncio.wrap_future(future)

    def watch(self, store: EventStore, space: str) -> LogWatch:
        return LogWatch(self.resources.log_watches, store, space, self.disconnected())

    async def read_in_threads(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yields the pieces of a download until the last one, or until the client disconnects. Each
        piece is read in a thread.

        While the client receives a piece, the thread is free for other requests. Before a piece is
        sent, the caller's access is checked again, so a revocation ends the download. Raises the
        errors of `Access.admit` if the caller has lost access. Raises `StorageUnavailable` if no
        thread is free within `PIECE_SECONDS_MAX` seconds.
        """
        gone = self.disconnected()
        while not gone.done():
            piece = await self.resources.reading.run(
                self.subject.key,
                next,
                pieces,
                b"",
                seconds_max=PIECE_SECONDS_MAX,
                runs_to_end=True,
                abandoned=self.disconnected,
            )
            if not piece:
                return
            await self.readmit()
            yield piece

    def disconnected(self) -> asyncio.Future[None]:
        """Returns a future that is done when the client has disconnected.

        The future is also done if the client has sent more bytes than a request body may have.
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
        # `readmit` refers to this request; without it the request is freed at once.
        self.__dict__.pop("readmit", None)
        if self._disconnected is not None:
            self._disconnected.cancel()


#: Headers that a request may have only once. With two of them, a proxy might use the first and
#: this service the second.
_GIVEN_ONCE = (b"authorization", b"content-encoding", b"content-length", b"content-type")


def check_given_once(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises `InvalidRequest` if one of the headers in `_GIVEN_ONCE`, such as `Content-Length`, is
    given more than once."""
    if len(dict(headers)) < len(headers):
        names = [name for name, _ in headers]
        for name in _GIVEN_ONCE:
            if names.count(name) > 1:
                raise InvalidRequest(f"the header {name.decode()} is given more than once")


def _new_id() -> str:
    """Returns a random request id of 16 hex digits.

    The id is random because a serial number would reveal how many requests other clients send.
    Python's fast random generator is sufficient, because the id is public. The secure generator of
    the operating system would need a system call for each request.
    """
    return f"{random.getrandbits(64):016x}"
