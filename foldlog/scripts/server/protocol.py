"""Defines the HTTP protocol of a web worker: uvicorn's protocol class, with limits on the time to
send a request, on the size of headers, and on the number of connections.

With uvicorn's own class, a client could fill the memory with endless headers, or keep a connection
open forever by sending one byte now and then. The module `api/http/bodies` limits the size of
request bodies.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from collections import deque
from typing import Any, Literal, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from foldlog.api.http.rates import Network, client_address, is_trusted
from foldlog.domain.fairness import Shares
from foldlog.domain.limits import LIMITS, Limits

#: Bytes to discard at most: the framing of chunks, trailers, and the rest of a body whose request
#: is answered. A smaller bound could cut off a client that sends the whole body before it reads.
UNREAD_BYTES_MAX = 32 * 2**20
#: unanswered requests of one connection
PIPELINED_MAX = 100

_TOO_LARGE = b"the request's line and headers are too large"
_TOO_SLOW = b"the request arrives too slowly"


class Connections:
    """Counts the open connections of a web worker. It limits the total number, and the number for
    each client address."""

    def __init__(self, limits: Limits = LIMITS, trusted_proxies: tuple[Network, ...] = ()):
        self.limits = limits
        self._trusted_proxies = trusted_proxies
        self._open = Shares(limits.connections_max, limits.connections_per_address_max)

    def enter(self, peer: str) -> bool:
        """Counts a new connection and returns `True`. If a limit is reached, the method does not
        count the connection and returns `False`."""
        return self._open.take(self._key(peer)) is None

    def leave(self, peer: str) -> None:
        self._open.release(self._key(peer))

    def _key(self, peer: str) -> str:
        """Returns the key under which a connection is counted, which is normally the address of the
        client.

        If the connection comes from a trusted proxy, or its address is unknown, the key is an empty
        text. The limit per address does not apply to the empty text, because a proxy forwards the
        requests of many clients.
        """
        return "" if is_trusted(peer, self._trusted_proxies) else client_address(peer, "", ())


NO_CONNECTION_LIMITS = Connections(
    msgspec.structs.replace(LIMITS, connections_max=0, connections_per_address_max=0)
)


class BoundedProtocol(HttpToolsProtocol):
    """Handles one HTTP connection. It limits the size of a request's headers, the time to send a
    request, and the number of unanswered requests. If a limit is exceeded, it closes the
    connection."""

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._limits = connections.limits
        self._peer = ""
        self._is_counted = False
        #: the part that the client has to send now; `None` between two requests
        self._awaited: Literal["head", "body"] | None = "head"
        #: the part for which the timer runs; `None` if no timer runs
        self._timed: Literal["head", "body"] | None = None
        self._timer: TimerHandle | None = None
        self._unread_timer: TimerHandle | None = None
        self._body_bytes = 0  #: since the timer started
        self._is_in_head = True
        self._has_begun = False  #: whether a byte of any request has arrived
        #: Bytes of the current head, or bytes after it that were discarded. The first read of a
        #: head is left out, because a single read is limited anyway.
        self._unread_bytes = 0
        #: requests in the order of their answers; only the first may be answering now
        self._cycles: deque[RequestResponseCycle] = deque()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self._is_counted = self._connections.enter(self._peer)
        if self._is_counted:
            self._set_timer()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        most = self._limits.head_bytes_max if self._is_in_head else UNREAD_BYTES_MAX
        if self._unread_bytes > most:
            self._refuse()
        if self._awaited != self._timed:
            self._set_timer()

    def _set_timer(self) -> None:
        self._stop_timer()
        if self._awaited is None or self.transport.is_closing():
            return
        self._timed, self._body_bytes = self._awaited, 0
        limits = self._limits
        is_head = self._awaited == "head"
        seconds = limits.head_seconds_max if is_head else limits.body_pace_seconds
        self._timer = self.loop.call_later(seconds, self._check_pace)

    def _stop_timer(self) -> None:
        self._timed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_pace(self) -> None:
        limits = self._limits
        enough = limits.body_bytes_per_second_min * limits.body_pace_seconds
        is_body = self._timed == "body"
        # The client waits for the service while reading is paused, or before 100 Continue is sent.
        waits_for_us = is_body and (self.flow.read_paused or self.cycle.waiting_for_100_continue)
        if waits_for_us or (is_body and self._body_bytes >= enough):
            self._set_timer()
            return
        self._stop_timer()
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if is_body:
            may_answer = len(self._cycles) <= 1 and not self.cycle.response_started
        else:  # a response is sent only if a request has begun
            may_answer = self._has_begun and (cycle is None or cycle.response_complete)
        if may_answer:
            self._answer_408()
        self.transport.close()

    def _answer_408(self) -> None:
        self.transport.write(STATUS_LINE[408] + b"connection: close\r\n\r\n" + _TOO_SLOW)

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._refuse_head(431, _TOO_LARGE)
        self.transport.close()

    def _refuse_head(self, status: int, text: bytes) -> None:
        """Sends an error response with `status` and `text`, and closes the connection.

        If an earlier request on the connection is still unanswered, the method closes the
        connection without a response. Responses are sent in the order of the requests, so the
        client would take the error response for the response to the earlier request.
        """
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(STATUS_LINE[status] + b"connection: close\r\n\r\n" + text)
        self.transport.close()

    def _fault_of_head(self) -> tuple[int, bytes] | None:
        """Checks for headers that a proxy could interpret differently than the service. Returns the
        status and the text of an error response, or `None` if the headers are unambiguous.

        If a proxy and the service disagree about where a body ends, a client can hide a second
        request in the body. This attack is called request smuggling (RFC 9112 sections 3.2, 6.1,
        11.2).
        """
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and b",".join(codings).strip().lower() != b"chunked":
            return 501, b"the only transfer coding is chunked"
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            return 400, b"a request has exactly one Host header"
        has_body = bool(codings) or any(
            name == b"content-length" and value.strip(b" 0") for name, value in self.headers
        )
        # After an Upgrade the parser takes the body for the other protocol.
        if has_body and self.parser.should_upgrade():
            return 400, b"a request with a body must not have an Upgrade header"
        return None

    def pause_writing(self) -> None:
        super().pause_writing()
        # If the client stops reading, the connection is closed, because the response would stay in
        # memory and the stream open.
        seconds = self._limits.unread_seconds_max
        self._unread_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def cut_off_if_stalled(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = self._has_begun = True
        self._awaited = "head"
        self._unread_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # trailers after a body are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._awaited = "body"
        self._stop_timer()
        self._unread_bytes = 0
        if self.transport.is_closing():
            return
        if fault := self._fault_of_head():
            self._refuse_head(*fault)
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        app = self.app
        if size > self._limits.head_bytes_max:
            self.app, self.url = _too_large, b"/"  # uvicorn fails to parse a longer URL
        super().on_headers_complete()
        self.app = app
        if self.parser.get_http_version() == "1.0":
            _send_without_chunks(self.cycle)
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        self._cycles.append(self.cycle)
        if len(self._cycles) > PIPELINED_MAX:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._awaited = None
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return  # the head was refused, or the client has disconnected
        self._body_bytes += len(body)
        if not self.cycle.response_complete:
            self._unread_bytes -= len(body)
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        # Uvicorn notifies the last request only; earlier ones would wait for the client for ever.
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._stop_timer()
        self._stop_unread_timer()
        if self._is_counted:
            self._connections.leave(self._peer)
        super().connection_lost(exc)


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """Makes a response without a length end with its connection, as HTTP/1.0 does. A client of this
    version knows no chunks (RFC 9112 section 6.1), which uvicorn would send."""
    send, is_measured = cycle.send, True

    async def send_plain(message: Any) -> None:
        nonlocal is_measured
        if message["type"] == "http.response.start":
            is_measured = any(name.lower() == b"content-length" for name, _ in message["headers"])
        if not is_measured:
            cycle.chunked_encoding = False
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = send_plain  # type: ignore[method-assign]


async def _too_large(scope: Any, receive: Any, send: Any) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(_TOO_LARGE)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": _TOO_LARGE})
