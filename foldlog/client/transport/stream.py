"""Reads the live channel: an HTTP response that stays open, in which the service sends pages of the
log.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypedDict

import httpx
import msgspec

from foldlog.client.errors import ServerProblem

from . import sse
from .responses import check_status, not_foldlog, translated

#: a silent stream is closed after this time. The service sends a heartbeat every 15 s, so a
#: longer silence means that a proxy buffers the stream.
SILENCE_SECONDS = 25.0
#: wait before the next stream, if the service sends no `retry`
RETRY_SECONDS = 1.0
EVENT_STREAM = "text/event-stream"


class Traffic(msgspec.Struct):
    """Counts requests and the bytes of their bodies, as sent and received (compressed)."""

    requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def since(self, before: Traffic) -> dict[str, int]:
        """Returns a dict from the name of each count to the difference between the count now and
        the count in `before`. `before` contains earlier counts.
        """
        return {
            name: getattr(self, name) - getattr(before, name) for name in self.__struct_fields__
        }


class _Answer(TypedDict):
    """The JSON object in one message of the live channel. The object has a page of events of the
    log, and the seq (`through`) and the mark at the end of the page.
    """

    log: str
    head: int
    events: list[Any]
    through: int
    mark: str
    more: bool


class Page(msgspec.Struct, frozen=True):
    """A page of events from the live channel. The cursor (`after`, `mark`) is the place in the log
    where the page begins.

    `answer` is the same JSON object that the server would return if `device` pulled events with
    this cursor.
    """

    device: str
    after: int
    mark: str
    answer: dict[str, Any]


class Stream(ABC):
    """The interface to one connection of the live channel, on which the service sends new
    events.
    """

    def __init__(self) -> None:
        #: wait before the next stream, once this one has ended
        self.retry_seconds = RETRY_SECONDS

    @abstractmethod
    def pages(self) -> Generator[Page | None, None, None]:
        """Connects, and yields each page when it arrives. Yields `None` for a heartbeat.

        Each page continues after the last event of the previous page. The generator ends
        when the service ends the stream, which happens from time to time. Raises
        `ServerProblem` if the server reports an error, and `Unreachable` if the connection
        breaks.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the stream at once. Any thread may call this method, even while another
        thread reads the stream.
        """


class HttpStream(Stream):
    """Reads the live channel over HTTP. The requests and the received bytes are added to
    `traffic`.
    """

    def __init__(
        self,
        http: httpx.Client,
        traffic: Traffic,
        device: str,
        after: int,
        mark: str,
        page_bytes: int | None = None,
    ):
        super().__init__()
        self._http = http
        self._traffic = traffic
        self._device = device
        self._after = after
        self._mark = mark
        self._page_bytes = page_bytes
        self._socket: socket.socket | None = None
        self._is_closed = False

    def pages(self) -> Generator[Page | None, None, None]:
        with translated(), self._request() as response:
            self._traffic.requests += 1
            network = response.extensions.get("network_stream")
            self._socket = network and network.get_extra_info("socket")
            check_status(response)
            if not response.headers.get("Content-Type", "").startswith(EVENT_STREAM):
                raise not_foldlog()
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
            # A shutdown wakes the reading thread; a close would leave it waiting. The plain
            # socket's method is called, because a TLS socket's own one would drop the cipher
            # that the reading thread still uses.
            with suppress(OSError):  # the connection has ended already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _request(self) -> Any:
        params: dict[str, Any] = {"device": self._device, "after": self._after}
        if self._mark:
            params["mark"] = self._mark
        if self._page_bytes is not None:
            params["bytes"] = self._page_bytes
        # A proxy that compresses would hold back data until a block is full.
        headers = {"Accept": EVENT_STREAM, "Accept-Encoding": "identity"}
        return self._http.stream(
            "GET", "events/stream", params=params, headers=headers, timeout=SILENCE_SECONDS
        )

    def _page(self, message: sse.Message) -> Page | None:
        """Decodes a message as a page. Returns `None` for an unknown kind of message.

        Raises `ServerProblem` if the server sent an error as a message of the kind
        `problem`.
        """
        try:
            if message.kind == "problem":
                document = msgspec.json.decode(message.data, type=dict[str, Any])
                raise ServerProblem(int(document.get("status", 500)), document, None)
            if message.kind:
                return None  # a kind of message of a later version
            answer = msgspec.json.decode(message.data, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise not_foldlog() from exc
        page = Page(self._device, self._after, self._mark, dict(answer))
        self._after, self._mark = answer["through"], answer["mark"]
        return page
