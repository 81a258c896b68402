"""Defines the interface through which a replica talks to a server, and its implementation over
HTTP.
"""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import httpx
import msgspec

from foldlog.client.errors import ClientError, ConnectionBroke, ServerProblem

from .enrolment import DeviceToken
from .responses import check_status, not_foldlog, seconds_from, translated
from .sign_in import SignIn, Token
from .stream import HttpStream, Stream, Traffic

#: smaller bodies are sent uncompressed, because compression would save too little
COMPRESS_BYTES_MIN = 1_024
#: a body is handed to the connection in pieces, which are counted for a connection that breaks
PIECE_BYTES = 16 * 2**10
TIMEOUT_SECONDS = 30.0
_decode = msgspec.json.decode
_encode = msgspec.json.encode


class _Seq(TypedDict):
    seq: int


class _Page(TypedDict):
    """The members that every page of events has. Another server's answer lacks some of them."""

    log: str | None
    head: int
    events: list[_Seq]
    through: int
    mark: str
    more: bool


class _Verdict(TypedDict):
    id: str
    verdict: str
    seq: int


class _SyncAnswer(_Page):
    verdicts: list[_Verdict]


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
        #: the size in bytes that the pages of an answer should have at most; `None` for the
        #: service's own maximum. The library sets it on a link that breaks. An implementation may
        #: ignore it.
        self.page_bytes: int | None = None

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

    def limits(self) -> dict[str, Any] | None:
        """Returns the limits of the service by name (`GET /v1/limits`), or `None` if the
        implementation cannot read them.
        """
        return None

    def use_token(self, token: Token) -> None:
        """Uses another access token from now on. Raises `BadToken` if the token cannot be sent, and
        `ClientError` if the implementation has no tokens.
        """
        raise ClientError("this implementation of `Server` has no tokens")

    @property
    def has_new_token(self) -> bool:
        """Whether the app has another token than the one that the server refused last."""
        return False

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


class HttpServer(Server):
    """Sends the requests for one space to a Foldlog service over HTTP."""

    def __init__(
        self,
        url: str,
        space: str,
        *,
        token: Token | DeviceToken = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ):
        super().__init__()
        self._own = token if isinstance(token, DeviceToken) else None
        self._sign_in = SignIn(token.current if isinstance(token, DeviceToken) else token)
        self._limits_url = f"{url.rstrip('/')}/v1/limits"
        self._http = httpx.Client(
            base_url=f"{url.rstrip('/')}/v1/spaces/{space}/",
            auth=self._authorize,
            timeout=timeout_seconds,
            transport=transport,
        )

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, dict[str, Any], content=_encode(body))

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        token = self._sign_in.current()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    def limits(self) -> dict[str, Any] | None:
        return self._call("GET", self._limits_url, dict[str, Any])

    def use_token(self, token: Token) -> None:
        self._own = None
        self._sign_in.replace(token)

    @property
    def has_new_token(self) -> bool:
        return self._sign_in.has_changed

    def sync(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._own is not None:
            self._own.ensure(body["device"], self._post)
        return self._call("POST", "sync", _SyncAnswer, content=_encode(body))

    def has_mark(self, after: int, mark: str) -> bool:
        try:
            self._call("GET", "events", _Page, params={"after": after, "mark": mark, "limit": 1})
        except ServerProblem as exc:
            if exc.problem in ("log-behind", "log-changed", "unknown-space"):
                return False
            raise
        return True

    def snapshot(self, cursor: str | None) -> Generator[bytes, None, None]:
        params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        if self.page_bytes is not None:
            params["bytes"] = self.page_bytes
        with self._answer("GET", "snapshot", params=params) as response:
            rest = b""
            for piece in response.iter_bytes():
                self._count(response)
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines

    def follow(self, device: str, after: int, mark: str) -> Stream:
        return HttpStream(self._http, self.streamed, device, after, mark, self.page_bytes)

    def close(self) -> None:
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        shape: Any,
        *,
        content: bytes | None = None,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Sends a request, and returns the answer as a dict that has the members of `shape`.

        Raises `NotFoldlog` for an answer of another form, and `ConnectionBroke` for half an answer.
        """
        with self._answer(method, path, content=content, params=params) as response:
            pieces = []
            for piece in response.iter_bytes():
                self._count(response)
                pieces.append(piece)
            text = b"".join(pieces)
        try:
            answer: dict[str, Any] = _decode(text)
            msgspec.convert(answer, shape)
        except msgspec.ValidationError as exc:
            raise not_foldlog() from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            if text.startswith(b'{"log":'):
                raise ConnectionBroke("the answer is incomplete") from exc
            raise not_foldlog() from exc
        return answer

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: dict[str, Any] | None = None,
    ) -> Iterator[httpx.Response]:
        """Sends a request, and gives the response, whose body is still to be read.

        Counts the traffic while it passes, so that a connection that breaks is counted too. Raises
        the errors of `check_status`, and `Unreachable` if the connection fails.
        """
        headers = {}
        body: Iterator[bytes] | None = None
        if content is not None:
            headers["Content-Type"] = "application/json"
            if len(content) >= COMPRESS_BYTES_MIN:
                content = gzip.compress(content, 6, mtime=0)
                headers["Content-Encoding"] = "gzip"
            headers["Content-Length"] = str(len(content))
            body = self._pieces(content)
        self._received = 0
        with (
            translated(),
            self._http.stream(
                method, path, content=body, params=params, headers=headers
            ) as response,
        ):
            self.traffic.requests += 1
            self.backoff_seconds = seconds_from(response.headers.get("Backoff")) or 0.0
            try:
                check_status(response)
            except ServerProblem as exc:
                if exc.status in (401, 403):
                    self._note_refused_token(response)
                raise
            yield response

    def _pieces(self, content: bytes) -> Iterator[bytes]:
        for start in range(0, len(content), PIECE_BYTES):
            piece = content[start : start + PIECE_BYTES]
            self.traffic.bytes_sent += len(piece)
            yield piece

    def _count(self, response: httpx.Response) -> None:
        """Adds the bytes that have arrived since the last call to the traffic."""
        self.traffic.bytes_received += response.num_bytes_downloaded - self._received
        self._received = response.num_bytes_downloaded

    def _note_refused_token(self, response: httpx.Response) -> None:
        sent = response.request.headers.get("Authorization", "")
        self._sign_in.note_refused(sent.removeprefix("Bearer ") or None)
