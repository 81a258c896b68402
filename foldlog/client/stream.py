"""The live channel as a device sees it: pages as they come, in an answer that stays open."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypedDict

import httpx
import msgspec

from . import sse
from .answers import not_ours, problem_of, reaching
from .errors import ServerProblem

#: how long a stream may be silent before it is given up. The service says at least every 15 s
#: that it lives; what does not come through in time is kept back on the way.
SILENCE_SECONDS = 25.0
#: before a stream that has ended is asked for again, unless the service says otherwise
RETRY_SECONDS = 1.0
EVENT_STREAM = "text/event-stream"


class Traffic(msgspec.Struct):
    """What went over the wire: bodies, in bytes as they travelled."""

    requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def since(self, before: Traffic) -> dict[str, int]:
        return {
            name: getattr(self, name) - getattr(before, name) for name in self.__struct_fields__
        }


class _Answer(TypedDict):
    log: str
    head: int
    events: list[Any]
    through: int
    mark: str
    more: bool


class Page(msgspec.Struct, frozen=True):
    """A page of the log, and what it goes on from.

    It is what a pull of this device at this cursor would be answered.
    """

    device: str
    after: int
    mark: str
    answer: dict[str, Any]


class Stream(ABC):
    """One connection to the live channel."""

    def __init__(self) -> None:
        #: how long to wait, when it has ended, before asking for the next one
        self.retry_seconds = RETRY_SECONDS

    @abstractmethod
    def pages(self) -> Generator[Page | None, None, None]:
        """The pages as they come, each from where the last one ended; `None` is a sign of life.

        Ends in good order now and then. Raises `ServerProblem`, or `Unreachable` if it breaks.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends it at once, from any thread."""


class HttpStream(Stream):
    """Connects when `pages` is begun. Counts into `traffic`, in the thread that reads."""

    def __init__(self, http: httpx.Client, traffic: Traffic, device: str, after: int, mark: str):
        super().__init__()
        self._http = http
        self._traffic = traffic
        self._device = device
        self._after = after
        self._mark = mark
        self._socket: socket.socket | None = None
        self._is_closed = False

    def pages(self) -> Generator[Page | None, None, None]:
        with reaching(), self._request() as response:
            self._traffic.requests += 1
            network = response.extensions.get("network_stream")
            self._socket = network and network.get_extra_info("socket")
            if response.is_error:
                response.read()
                raise problem_of(response)
            if not response.headers.get("Content-Type", "").startswith(EVENT_STREAM):
                raise not_ours()
            reader, counted = sse.Reader(), 0
            for piece in response.iter_bytes():
                if self._is_closed:
                    return
                self._traffic.bytes_received += response.num_bytes_downloaded - counted
                counted = response.num_bytes_downloaded
                messages = reader.read(piece)
                self.retry_seconds = reader.retry_seconds or self.retry_seconds
                yield None
                for message in messages:
                    yield self._page(message)

    def close(self) -> None:
        self._is_closed = True
        if self._socket is not None:
            # Closing it would not wake the thread that reads it; this ends its read. Not the
            # method of a TLS socket, which would take the cipher away under that thread.
            with suppress(OSError):  # it has ended by itself
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _request(self) -> Any:
        params: dict[str, Any] = {"device": self._device, "after": self._after}
        if self._mark:
            params["mark"] = self._mark
        # What compresses on the way would wait for more to compress.
        headers = {"Accept": EVENT_STREAM, "Accept-Encoding": "identity"}
        return self._http.stream(
            "GET", "events/stream", params=params, headers=headers, timeout=SILENCE_SECONDS
        )

    def _page(self, message: sse.Message) -> Page | None:
        try:
            if message.kind == "problem":
                document = msgspec.json.decode(message.data, type=dict[str, Any])
                raise ServerProblem(int(document.get("status", 500)), document, None)
            if message.kind:
                return None  # what a later service may tell besides
            answer = msgspec.json.decode(message.data, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise not_ours() from exc
        page = Page(self._device, self._after, self._mark, dict(answer))
        self._after, self._mark = answer["through"], answer["mark"]
        return page
