"""The server as a device sees it: a port, and the one that goes over HTTP."""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec

from .errors import ServerProblem, Unreachable

#: below this, compressing a body saves nothing that the headers do not cost
COMPRESS_BYTES_MIN = 1_024
TIMEOUT_SECONDS = 30.0
_decode = msgspec.json.decode
_encode = msgspec.json.encode


class Traffic(msgspec.Struct):
    """What went over the wire: bodies, in bytes as they travelled."""

    requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Server(ABC):
    """Each call raises `ServerProblem`, or `Unreachable` if there was no answer."""

    def __init__(self) -> None:
        self.traffic = Traffic()
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

    @abstractmethod
    def close(self) -> None:
        """Ends connections."""


class HttpServer(Server):
    """One space of a Foldlog service, over HTTP."""

    def __init__(
        self,
        url: str,
        space: str,
        *,
        token: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ):
        super().__init__()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=f"{url.rstrip('/')}/v1/spaces/{space}/",
            headers=headers,
            timeout=timeout_seconds,
            transport=transport,
        )

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
        with _reaching(), self._http.stream("GET", "snapshot", params=params) as response:
            self.traffic.requests += 1
            if response.is_error:
                response.read()
                self._raise(response)
            counted, rest = 0, b""
            for piece in response.iter_bytes():
                self.traffic.bytes_received += response.num_bytes_downloaded - counted
                counted = response.num_bytes_downloaded
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines

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
        with _reaching():
            response = self._http.request(
                method, path, content=content, params=params, headers=headers
            )
        self.traffic.requests += 1
        self.traffic.bytes_sent += len(content or b"")
        self.traffic.bytes_received += response.num_bytes_downloaded
        self.backoff_seconds = _seconds(response.headers.get("Backoff")) or 0.0
        if response.is_error:
            self._raise(response)
        try:
            answer: dict[str, Any] = _decode(response.content)
        except msgspec.DecodeError as exc:
            raise Unreachable("what answered is not Foldlog") from exc
        return answer

    def _raise(self, response: httpx.Response) -> None:
        try:
            document = _decode(response.content)
        except msgspec.DecodeError:
            document = None
        if not isinstance(document, dict):
            document = {"code": "unknown", "detail": f"status {response.status_code}"}
        retry_after = _seconds(response.headers.get("Retry-After"))
        raise ServerProblem(response.status_code, document, retry_after)


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        raise Unreachable(str(exc) or type(exc).__name__) from exc


def _seconds(text: str | None) -> float | None:
    """A header that may be a number of seconds. A date is not worth a calendar here."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
