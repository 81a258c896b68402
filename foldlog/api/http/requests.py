"""A request as operations see it, whichever server took it.

There are two doors: Flask's, a thread for each request, and one on an event loop for the calls
that are made most (asgi.py). An operation is written once, as a coroutine; what it must wait for
it leaves to its request. In a thread that waits by itself, so its coroutine never stops on the way.
"""

from __future__ import annotations

import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

from foldlog.domain.access import Caller
from foldlog.domain.errors import InvalidRequest
from foldlog.domain.ports import EventStore

from .rates import NO_RATES, Rates

T = TypeVar("T")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class LogWatch(ABC):
    """Watches the growth of one space, from before its log was read until it is closed.

    So nothing is missed in between: what came after the watching began ends the next `wait`.
    """

    @abstractmethod
    async def wait(self, seconds: float) -> bool:
        """Whether the log may have grown since the last wait; `False` after so many seconds."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Nobody needs this any more: the client has gone, or the service stops."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> LogWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Request(ABC):
    """What was asked, how it is waited for, and what the log will say of it."""

    method: str
    query_string: bytes
    #: of the client, as far as it can be known; empty if not at all
    address: str = ""
    #: what it is held to
    rates: Rates = NO_RATES
    #: how many requests it counted as, besides itself, for its bytes
    charged: float = 0.0
    #: who calls, from when that is known
    caller: Caller | None = None
    #: finds anew who calls: `Access.admit`, of what this request asks for
    readmit: Callable[..., Awaitable[None]]

    def __init__(self) -> None:
        self.started = time.perf_counter()
        given = self.header("x-request-id")
        self.id = given if given and _SANE_ID.fullmatch(given) else _new_id()
        # Of the thread, or of the task: whatever is logged on the way says whose way it is.
        structlog.contextvars.bind_contextvars(request_id=self.id)
        self.bytes_in = 0
        self.problem: str | None = None  #: the code of what it was refused with

    def hold_to(self, rates: Rates, address: str, *, is_counted: bool) -> None:
        """To what its client may ask for. Raises `RateLimited`, if it is to be counted."""
        self.rates, self.address = rates, address
        if is_counted:
            rates.check_address(self)

    @abstractmethod
    def header(self, name: str) -> str:
        """A header by its name in lower case; empty if it was not given."""

    @abstractmethod
    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes over the wire."""

    @abstractmethod
    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Calls what waits for a database, or computes for long."""

    async def look_up(self, function: Callable[..., T], *args: Any) -> T:
        """As `run`, of who calls: whoever is to be let in waits for nobody who reads."""
        return await self.run(function, *args)

    @abstractmethod
    async def pause(self, seconds: float) -> bool:
        """Whether it is still of use to wait, after so many seconds."""

    @contextmanager
    def place_to_wait(self) -> Iterator[bool]:
        """Whether there is one: whoever pauses must leave threads for the others."""
        yield True

    @abstractmethod
    async def outcome(self, future: Future[T]) -> T:
        """What becomes of what another thread does."""

    @abstractmethod
    def watch(self, store: EventStore, space: str) -> LogWatch: ...


#: Of each of these a request has one. Of two, a proxy might go by the one and we by the other.
_GIVEN_ONCE = (b"authorization", b"content-encoding", b"content-length", b"content-type")


def check_given_once(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises `InvalidRequest` for a request that contradicts itself; of ASGI's headers."""
    if len(dict(headers)) < len(headers):
        names = [name for name, _ in headers]
        for name in _GIVEN_ONCE:
            if names.count(name) > 1:
                raise InvalidRequest(f"the header {name.decode()} is given more than once")


def _new_id() -> str:
    """One that tells nothing of other requests, as a number would.

    It is no secret, so Python's own generator does: the system's would be a system call for each
    request, at which other threads take their turn.
    """
    return f"{random.getrandbits(64):016x}"


def run_now(coroutine: Awaitable[T]) -> T:
    """The result of a coroutine whose request waits by itself: it never stops on the way."""
    assert isinstance(coroutine, Coroutine)
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("a coroutine of a thread waited for an event loop")
