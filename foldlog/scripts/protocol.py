"""How a web worker reads HTTP: uvicorn's own way, with bounds on whatever is no body.

Bodies are bounded where they are read (api/bodies). The parser bounds nothing: without this a
client could send a header without an end, and all of it would be kept.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

#: of a request's line and headers together
HEAD_BYTES_MAX = 64 * 2**10
#: of what comes to nobody's use: the framing of chunks, trailers, the rest of a body whose request
#: is answered. Refusing sooner could cut off a client that sends all before it reads.
UNREAD_BYTES_MAX = 32 * 2**20
#: requests of one connection that are not answered yet
PIPELINED_MAX = 100

_TOO_LARGE = b"the request's line and headers are too large"


class BoundedProtocol(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._is_in_head = True
        #: received since a head began, or since it ended, and not handed to a request; what comes
        #: together with the beginning, which is no more than the system reads at once, is not in it
        self._unread_bytes = 0
        #: requests in the order of their answers; those before the last one wait for theirs
        self._cycles: deque[RequestResponseCycle] = deque()

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > (HEAD_BYTES_MAX if self._is_in_head else UNREAD_BYTES_MAX):
            self._refuse()

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_head and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(STATUS_LINE[431] + b"connection: close\r\n\r\n" + _TOO_LARGE)
        self.transport.close()

    def cut_off_if_stalled(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._unread_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # what comes after a body nobody asked for
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._unread_bytes = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        app = self.app
        if size > HEAD_BYTES_MAX:
            self.app, self.url = _too_large, b"/"  # a longer one could not even be parsed
        super().on_headers_complete()
        self.app = app
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        self._cycles.append(self.cycle)
        if len(self._cycles) > PIPELINED_MAX:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self._unread_bytes -= len(body)
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        # Uvicorn tells the last request alone, and one before it would wait on for its client.
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)


async def _too_large(scope: Any, receive: Any, send: Any) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(_TOO_LARGE)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": _TOO_LARGE})
