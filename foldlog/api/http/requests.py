"""A request as operations see it: its headers and body, and every way in which it waits.

A request waits on the event loop. A call that needs a thread runs in one of the few that all
requests share, and the request holds that thread only while the call runs.
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
#: How long the next piece of a download that has begun waits for a thread, in seconds. It is longer
#: than for a new call, because giving up cuts the download off.
PIECE_SECONDS_MAX = 30.0


class Request:
    """One HTTP request, from an ASGI scope. The server closes it after the answer."""

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
        # Bound to this task, so that every log line on the way carries the id.
        structlog.contextvars.bind_contextvars(request_id=self.id)
        self.bytes_in = 0
        self.problem: str | None = None  #: the code of the problem that refused it
        self._disconnected: asyncio.Task[None] | None = None

    @property
    def caller(self) -> Caller | None:
        """The caller, once it is known."""
        return self._caller

    @caller.setter
    def caller(self, caller: Caller) -> None:
        self._caller = caller
        self.subject.caller = caller.id or ""

    def header(self, name: str) -> str:
        """Returns a header by its name in lower case; empty if it is absent."""
        return self._headers.get(name.encode(), b"").decode("latin-1")

    def hold(self, limit: str = STREAMS) -> Lease:
        """Takes one of the streams or downloads that the client may have open at a time.

        Raises `RateLimited`.
        """
        return self.rates.hold(self.subject, limit)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives. Raises `Disconnected`."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            if piece := message.get("body", b""):
                yield piece
            more = message.get("more_body", False)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function that waits for the database, or computes for long, in a thread.

        Call it after the body has been read: while the call waits for a thread, the rest of the
        body is discarded. Raises as `FairThreads.run` does.
        """
        return await self.resources.reading.run(
            self.subject.key, function, *args, abandoned=self.disconnected
        )

    async def look_up(self, function: Callable[..., T], *args: Any) -> T:
        """Like `run`, in a thread that is kept for admission: it never waits behind reads."""
        return await self.resources.admission.run(self.subject.key, function, *args)

    async def pause(self, seconds: float) -> bool:
        """Waits, and returns whether waiting still makes sense: the client is connected, and the
        service goes on."""
        await asyncio.wait((self.disconnected(),), timeout=seconds)
        return not self.disconnected().done() and not self.resources.log_watches.is_ending

    async def outcome(self, future: Future[T]) -> T:
        """Waits for the result of work that other threads do."""
        return await asyncio.wrap_future(future)

    def watch(self, store: EventStore, space: str) -> LogWatch:
        return LogWatch(self.resources.log_watches, store, space, self.disconnected())

    async def read_in_threads(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yields the pieces, each read in a thread, until the client disconnects.

        No thread is held while a slow client takes a piece. The caller is checked again before
        each piece, so a revoked caller gets no piece that was read after the revocation. Raises as
        `run` and `Access.admit` do.
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
        """Returns a future that is done once the client has disconnected.

        It is done as well when a client sends more bytes after its request than a body may have.
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


#: Headers that a request has once at most. With two, a proxy might obey one and we the other.
_GIVEN_ONCE = (b"authorization", b"content-encoding", b"content-length", b"content-type")


def check_given_once(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises `InvalidRequest` for ASGI headers that contradict each other."""
    if len(dict(headers)) < len(headers):
        names = [name for name, _ in headers]
        for name in _GIVEN_ONCE:
            if names.count(name) > 1:
                raise InvalidRequest(f"the header {name.decode()} is given more than once")


def _new_id() -> str:
    """Returns an id that reveals nothing about other requests, as a number would.

    It is no secret, so Python's own generator serves. The system's generator would cost a system
    call for each request, at which other threads take Python's lock.
    """
    return f"{random.getrandbits(64):016x}"
