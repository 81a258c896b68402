"""Defines the interface through which a replica talks to a server, and its implementation over
HTTP.
"""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

import httpx
import msgspec

from foldlog.client.errors import ServerProblem

from .responses import not_foldlog, problem_of, seconds_from, translated
from .stream import HttpStream, Stream, Traffic

#: smaller bodies are sent uncompressed, because compression would save too little
COMPRESS_BYTES_MIN = 1_024
TIMEOUT_SECONDS = 30.0
_decode = msgspec.json.decode
_encode = msgspec.json.encode


class Server(ABC):
    """The interface to one space of a Foldlog service.

    The methods raise `ServerProblem` if the server answers with an error, and `Unreachable` if
    there is no answer. An app may pass its own implementation to `foldlog.open`, for example to
    use another transport than HTTP.
    """

    def __init__(self) -> None:
        #: traffic of all requests but the live channel
        self.traffic = Traffic()
        #: traffic of the live channel, written by the thread that reads the stream
        self.streamed = Traffic()
        #: wait that the last answer asked for (header `Backoff`), also when it was successful
        self.backoff_seconds = 0.0

    @abstractmethod
    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        """Sends changesets and pulls new events, in one request (`POST .../sync`). Returns the
        server's answer as a dict.

        `body` is the request as a dict. docs/reference/protocol.md describes the members of the
        request and of the answer. The events in the answer are JSON objects.
        """

    @abstractmethod
    def has_mark(self, after: int, mark: str) -> bool:
        """Returns whether the server's log has the mark `mark` at the seq `after`."""

    @abstractmethod
    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        """Yields the lines of a snapshot, from the beginning or from `cursor` on.

        Raises `Unreachable` if the download breaks.
        """

    def follow(self, device: str, after: int, mark: str) -> Stream:
        """Returns a stream of the live channel that begins after the cursor (`after`,
        `mark`).

        The connection is opened when the caller begins to read the stream. Raises
        `ServerProblem` with status 404 if the server has no live channel.
        """
        raise ServerProblem(404, {"code": "no-such-path", "detail": "no live channel"}, None)

    @abstractmethod
    def close(self) -> None:
        """Closes all connections to the server."""


#: an access token, or a function that returns the current one, because tokens may expire
Token = str | Callable[[], str] | None


class HttpServer(Server):
    """Sends the requests for one space to a Foldlog service over HTTP."""

    def __init__(
        self,
        url: str,
        space: str,
        *,
        token: Token = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ):
        super().__init__()
        self._token = token
        self._http = httpx.Client(
            base_url=f"{url.rstrip('/')}/v1/spaces/{space}/",
            auth=self._authorize,
            timeout=timeout_seconds,
            transport=transport,
        )

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        token = self._token() if callable(self._token) else self._token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "sync", content=_encode(body))

    def has_mark(self, after: int, mark: str) -> bool:
        try:
            self._call("GET", "events", params={"after": after, "mark": mark, "limit": 1})
        except ServerProblem as exc:
            if exc.problem in ("log-behind", "log-changed", "unknown-space"):
                return False
            raise
        return True

    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        params = {} if cursor is None else {"cursor": cursor}
        with translated(), self._http.stream("GET", "snapshot", params=params) as response:
            self.traffic.requests += 1
            if response.is_error:
                response.read()
                raise problem_of(response)
            counted, rest = 0, b""
            for piece in response.iter_bytes():
                self.traffic.bytes_received += response.num_bytes_downloaded - counted
                counted = response.num_bytes_downloaded
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines

    def follow(self, device: str, after: int, mark: str) -> Stream:
        return HttpStream(self._http, self.streamed, device, after, mark)

    def close(self) -> None:
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        headers = {}
        if content is not None:
            headers["Content-Type"] = "application/json"
            if len(content) >= COMPRESS_BYTES_MIN:
                content = gzip.compress(content, 6, mtime=0)
                headers["Content-Encoding"] = "gzip"
        with translated():
            response = self._http.request(
                method, path, content=content, params=params, headers=headers
            )
        self.traffic.requests += 1
        self.traffic.bytes_sent += len(content or b"")
        self.traffic.bytes_received += response.num_bytes_downloaded
        self.backoff_seconds = seconds_from(response.headers.get("Backoff")) or 0.0
        if response.is_error:
            raise problem_of(response)
        try:
            answer: dict[str, Any] = _decode(response.content)
        except msgspec.DecodeError as exc:
            raise not_foldlog() from exc
        return answer
