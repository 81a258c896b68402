"""The server as a device sees it: a port, and the one that goes over HTTP."""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

import httpx
import msgspec

from .answers import not_ours, problem_of, reaching, seconds
from .errors import ServerProblem
from .stream import HttpStream, Stream, Traffic

#: below this, compressing a body saves nothing that the headers do not cost
COMPRESS_BYTES_MIN = 1_024
TIMEOUT_SECONDS = 30.0
_decode = msgspec.json.decode
_encode = msgspec.json.encode


class Server(ABC):
    """Each call raises `ServerProblem`, or `Unreachable` if there was no answer."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        #: of the live channel, by the thread that reads it
        self.streamed = Traffic()
        #: seconds that the server asks everybody to leave it alone, also when it answers
        self.backoff_seconds = 0.0

    @abstractmethod
    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        """Push and pull. Events in the answer are raw, to be decoded as `Event`."""

    @abstractmethod
    def shares(self, after: int, mark: str) -> bool:
        """Whether the server's log has this mark at `after`."""

    @abstractmethod
    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        """The lines of a snapshot. A stream that breaks raises `Unreachable`."""

    def follow(self, device: str, after: int, mark: str) -> Stream:
        """The live channel from this cursor on. Not every server has one."""
        raise ServerProblem(404, {"code": "no-such-path", "detail": "no live channel"}, None)

    @abstractmethod
    def close(self) -> None:
        """Ends connections."""


#: a token, or what gives the one of now: those of a sign-in expire
Token = str | Callable[[], str] | None


class HttpServer(Server):
    """One space of a Foldlog service, over HTTP."""

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
            auth=self._signed,
            timeout=timeout_seconds,
            transport=transport,
        )

    def _signed(self, request: httpx.Request) -> httpx.Request:
        token = self._token() if callable(self._token) else self._token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "sync", content=_encode(body))

    def shares(self, after: int, mark: str) -> bool:
        try:
            self._call("GET", "events", params={"after": after, "mark": mark, "limit": 1})
        except ServerProblem as exc:
            if exc.problem in ("log-behind", "log-changed", "unknown-space"):
                return False
            raise
        return True

    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        params = {} if cursor is None else {"cursor": cursor}
        with reaching(), self._http.stream("GET", "snapshot", params=params) as response:
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
        with reaching():
            response = self._http.request(
                method, path, content=content, params=params, headers=headers
            )
        self.traffic.requests += 1
        self.traffic.bytes_sent += len(content or b"")
        self.traffic.bytes_received += response.num_bytes_downloaded
        self.backoff_seconds = seconds(response.headers.get("Backoff")) or 0.0
        if response.is_error:
            raise problem_of(response)
        try:
            answer: dict[str, Any] = _decode(response.content)
        except msgspec.DecodeError as exc:
            raise not_ours() from exc
        return answer
