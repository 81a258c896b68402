"""A request as operations see it, whichever server took it.

There are two doors: Flask's, a thread for each request, and one on an event loop for the calls
that are made most (asgi.py). An operation is written once, as a coroutine; what it must wait for
it leaves to its request. In a thread that waits by itself, so its coroutine never stops on the way.
"""

from __future__ import annotations

import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from itertools import count
from typing import Any, TypeVar

import structlog

from ..domain.access import Caller
from ..domain.ports import EventStore
from .rates import NO_RATES, Rates

T = TypeVar("T")

#: Ids of requests: where and when this process began, by chance, and a number. A random one each
#: would be a system call each, at which Python's other threads take their turn.
_ID_START = secrets.token_hex(8)
_numbers = count(1)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Growth(ABC):
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

    def __enter__(self) -> Growth:
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
    #: who calls, from when that is known
    caller: Caller | None = None
    #: finds anew who calls: `Access.readmit`, of what this request asks for
    readmit: Callable[..., Awaitable[None]]

    def __init__(self) -> None:
        self.started = time.perf_counter()
        given = self.header("x-request-id")
        self.id = (
            given if given and _SANE_ID.fullmatch(given) else f"{_ID_START}{next(_numbers):08x}"
        )
        # Of the thread, or of the task: whatever is logged on the way says whose way it is.
        structlog.contextvars.bind_contextvars(request_id=self.id)
        self.bytes_in = 0
        self.problem: str | None = None  #: the code of what it was refused with

    @abstractmethod
    def header(self, name: str) -> str:
        """A header by its name in lower case; empty if it was not given."""

    @abstractmethod
    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes over the wire."""

    @abstractmethod
    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Calls what waits for a database, or computes for long."""

    @abstractmethod
    async def outcome(self, future: Future[T]) -> T:
        """What becomes of what another thread does."""

    @abstractmethod
    def watch(self, store: EventStore, space: str) -> Growth: ...


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
