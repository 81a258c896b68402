"""How a web worker reads HTTP: uvicorn's own way, with bounds on whatever is no body.

Bodies are bounded where they are read (api/bodies). The parser bounds nothing: without this a
client could send a header without an end, and all of it would be kept; or a byte now and then, and
its connection would be.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from collections import Counter, deque
from typing import Any, Literal, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from foldlog.api.http.rates import Network, client_address, is_trusted
from foldlog.domain.limits import LIMITS, Limits

#: of what comes to nobody's use: the framing of chunks, trailers, the rest of a body whose request
#: is answered. Refusing sooner could cut off a client that sends all before it reads.
UNREAD_BYTES_MAX = 32 * 2**20
#: requests of one connection that are not answered yet
PIPELINED_MAX = 100

_TOO_LARGE = b"the request's line and headers are too large"
_TOO_SLOW = b"the request comes too slowly"


class Connections:
    """The connections of a worker: how many there may be, and how slow."""

    def __init__(self, limits: Limits = LIMITS, trusted_proxies: tuple[Network, ...] = ()):
        self.limits = limits
        self._trusted_proxies = trusted_proxies
        self._count = 0
        self._of_address: Counter[str] = Counter()

    def enter(self, peer: str) -> bool:
        """Counts one more, however it is answered; `False` if that is one too many."""
        key, limits = self._key(peer), self.limits
        self._count += 1
        self._of_address[key] += 1
        most = limits.connections_per_address_max
        of_all, of_one = limits.connections_max, most if key else 0
        is_over = (of_all and self._count > of_all) or (of_one and self._of_address[key] > of_one)
        return not is_over

    def leave(self, peer: str) -> None:
        key = self._key(peer)
        self._count -= 1
        self._of_address[key] -= 1
        if not self._of_address[key]:
            del self._of_address[key]

    def _key(self, peer: str) -> str:
        """Empty for who has no address, or is a proxy for many."""
        return "" if is_trusted(peer, self._trusted_proxies) else client_address(peer, "", ())


NO_CONNECTION_LIMITS = Connections(
    msgspec.structs.replace(LIMITS, connections_max=0, connections_per_address_max=0)
)


class BoundedProtocol(HttpToolsProtocol):
    def __init__(self, connections: Connections, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._counted = connections
        self._limits = connections.limits
        self._peer = ""
        #: what the client is to send now; between two requests it may take its time
        self._awaited: Literal["head", "body"] | None = "head"
        #: of which the clock runs; only what has not come at once is timed
        self._timed: Literal["head", "body"] | None = None
        self._timer: TimerHandle | None = None
        self._unread_timer: TimerHandle | None = None
        self._body_bytes = 0  #: since the clock was set
        self._is_in_head = True
        self._has_begun = False  #: a request, of which at least a byte has come
        #: received since a head began, or since it ended, and not handed to a request; what comes
        #: together with the beginning, which is no more than the system reads at once, is not in it
        self._unread_bytes = 0
        #: requests in the order of their answers; those before the last one wait for theirs
        self._cycles: deque[RequestResponseCycle] = deque()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        if self._counted.enter(self._peer):
            self._set_clock()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        most = self._limits.head_bytes_max if self._is_in_head else UNREAD_BYTES_MAX
        if self._unread_bytes > most:
            self._refuse()
        if self._awaited != self._timed:
            self._set_clock()

    def _set_clock(self) -> None:
        self._stop_clock()
        if self._awaited is None or self.transport.is_closing():
            return
        self._timed, self._body_bytes = self._awaited, 0
        limits = self._limits
        is_head = self._awaited == "head"
        seconds = limits.head_seconds_max if is_head else limits.body_pace_seconds
        self._timer = self.loop.call_later(seconds, self._look_at_clock)

    def _stop_clock(self) -> None:
        self._timed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_clock(self) -> None:
        limits = self._limits
        enough = limits.body_bytes_per_second_min * limits.body_pace_seconds
        is_body = self._timed == "body"
        # It is not slow as long as we do not read, or have not asked it to go on.
        waits_for_us = is_body and (self.flow.read_paused or self.cycle.waiting_for_100_continue)
        if waits_for_us or (is_body and self._body_bytes >= enough):
            self._set_clock()
            return
        self._stop_clock()
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if is_body:
            may_answer = len(self._cycles) <= 1 and not self.cycle.response_started
        else:  # of a connection on which nothing was asked yet, there is nothing to answer
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
        """Nothing that comes after it is read. Answers are in order, so one that is still owed to
        an earlier request leaves no place for this one."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(STATUS_LINE[status] + b"connection: close\r\n\r\n" + text)
        self.transport.close()

    def _fault_of_head(self) -> tuple[int, bytes] | None:
        """Whether others, a proxy before us say, could read this head otherwise than we do, and
        find the end of its body elsewhere (RFC 9112 sections 3.2, 6.1 and 11.2)."""
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and b",".join(codings).strip().lower() != b"chunked":
            return 501, b"no transfer coding but chunked is known"
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            return 400, b"a request has one Host"
        has_body = bool(codings) or any(
            name == b"content-length" and value.strip(b" 0") for name, value in self.headers
        )
        # The parser takes all that follows for another protocol, the body too.
        if has_body and self.parser.should_upgrade():
            return 400, b"no protocol is upgraded to: send no Upgrade with a body"
        return None

    def pause_writing(self) -> None:
        super().pause_writing()
        # Whoever asks and does not read would hold a thread, or a place among its streams.
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
        if self._is_in_head:  # what comes after a body nobody asked for
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._awaited = "body"
        self._stop_clock()
        self._unread_bytes = 0
        if self.transport.is_closing():
            return
        if fault := self._fault_of_head():
            self._refuse_head(*fault)
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        app = self.app
        if size > self._limits.head_bytes_max:
            self.app, self.url = _too_large, b"/"  # a longer one could not even be parsed
        super().on_headers_complete()
        self.app = app
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
            return  # of a request that was refused by its head, or whose client has gone
        self._body_bytes += len(body)
        if not self.cycle.response_complete:
            self._unread_bytes -= len(body)
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        # Uvicorn tells the last request alone, and one before it would wait on for its client.
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._stop_clock()
        self._stop_unread_timer()
        self._counted.leave(self._peer)
        super().connection_lost(exc)


async def _too_large(scope: Any, receive: Any, send: Any) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(_TOO_LARGE)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": _TOO_LARGE})
