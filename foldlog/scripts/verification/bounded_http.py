"""Reads the answers of a service that an auditor distrusts, in bounded memory and time.

A hostile service may answer without an end, very slowly, or with a few bytes that inflate to
gigabytes. So every read has a limit of bytes, and every wait has a limit of seconds.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread

import httpx

from foldlog.domain.errors import OperatorError
from foldlog.scripts.exports.bounded import LINE_BYTES_MAX

#: The time limit of the beginning of an answer, and of one read of its body.
ANSWER_SECONDS_MAX, READ_SECONDS_MAX = 120.0, 60.0
#: A body must arrive with so many bytes in so many seconds of waiting. A slow radio link is faster.
PACE_BYTES, PACE_SECONDS = 16 * 2**10, 60.0
#: Inflated bytes that are in memory at a time.
PIECE_BYTES = 2**18
#: Compressed bytes that may inflate to nothing.
IDLE_BYTES_MAX = 2**20
ERROR_BYTES_MAX = 2**16


class ServiceUnusable(OperatorError):
    """Raised when a request to the service failed, or when the response is unexpected."""

    code = "service-unusable"


class BoundedHttp:
    """Sends GET requests with `http`. All methods raise `ServiceUnusable` if a request fails, or if
    its answer exceeds a limit."""

    def __init__(self, http: httpx.Client):
        self._http = http

    def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        bytes_max: int,
        may_be_missing: bool = False,
    ) -> bytes | None:
        """Returns the body of an answer, which has `bytes_max` bytes at most. Returns `None` for a
        404 if `may_be_missing` is true."""
        with self._answer(path, params) as response:
            is_missing = may_be_missing and response.status_code == httpx.codes.NOT_FOUND
            if not is_missing:
                _check_ok(response)
            body = _read(response, bytes_max)
        return None if is_missing else body

    @contextmanager
    def lines(self, path: str, params: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """Opens an answer that consists of lines while the `with` block runs. A line has at most
        `LINE_BYTES_MAX` bytes."""
        with self._answer(path, params) as response:
            _check_ok(response)
            yield _split(_pieces(response))

    @contextmanager
    def _answer(self, path: str, params: Mapping[str, str] | None) -> Iterator[httpx.Response]:
        request = self._http.build_request(
            "GET", path, params=params, headers={"Accept-Encoding": "gzip"}
        )
        response: httpx.Response | None = None
        try:
            response = self._send(request)
            yield response
        except httpx.HTTPError as exc:
            raise ServiceUnusable(f"{path}: {exc or type(exc).__name__}") from exc
        finally:
            if response is not None:
                response.close()

    def _send(self, request: httpx.Request) -> httpx.Response:
        # httpx limits each read, but not the time until all headers are there.
        found: list[httpx.Response | BaseException] = []

        def send() -> None:
            try:
                found.append(self._http.send(request, stream=True))
            except BaseException as exc:
                found.append(exc)

        thread = Thread(target=send, daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS_MAX)
        if not found:
            raise ServiceUnusable(
                f"{request.url.path}: no answer in {ANSWER_SECONDS_MAX:g} seconds"
            )
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]


def _check_ok(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        text = _read(response, ERROR_BYTES_MAX).decode(errors="replace")[:300]
        raise ServiceUnusable(f"{response.url.path}: {response.status_code} {text}")


def _read(response: httpx.Response, bytes_max: int) -> bytes:
    body = bytearray()
    for piece in _pieces(response):
        body += piece
        if len(body) > bytes_max:
            raise ServiceUnusable(f"{response.url.path}: more than {bytes_max} bytes")
    return bytes(body)


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    """Yields the body in pieces of a bounded size. It may be compressed with gzip."""
    encoding = response.headers.get("Content-Encoding", "identity")
    pieces = _paced(response.iter_raw(), response.url.path)
    if encoding == "identity":
        return pieces
    if encoding == "gzip":
        return _inflated(pieces)
    raise ServiceUnusable(f"{response.url.path}: the encoding is {encoding!r}, not gzip")


def _paced(pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
    """Yields the pieces. Raises `ServiceUnusable` if they arrive too slowly."""
    waited, count = 0.0, 0
    while True:
        began = time.monotonic()
        piece = next(pieces, None)
        waited += time.monotonic() - began
        if piece is None:
            return
        count += len(piece)
        if waited > PACE_SECONDS:
            if count < PACE_BYTES:
                raise ServiceUnusable(f"{path}: {count} bytes came in {waited:.0f} seconds")
            waited, count = 0.0, 0
        yield piece


def _inflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    decoder, idle = zlib.decompressobj(wbits=31), 0
    try:
        for piece in pieces:
            idle += len(piece)
            rest = piece
            while True:
                inflated = decoder.decompress(rest, PIECE_BYTES)
                rest = decoder.unconsumed_tail
                if inflated:
                    idle = 0
                    yield inflated
                if len(inflated) < PIECE_BYTES and not rest:
                    break
            if idle > IDLE_BYTES_MAX or decoder.unused_data:
                raise ServiceUnusable("the answer has more compressed bytes than content")
    except zlib.error as exc:
        raise ServiceUnusable(f"the answer is no gzip: {exc}") from exc
    if not decoder.eof:
        raise ServiceUnusable("the answer was cut")


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Splits the pieces of a response into lines, only at newline characters. Events may
    contain other characters that Python's `splitlines` treats as line ends.

    Raises `ServiceUnusable` if a line is too long, or the last line is incomplete.
    """
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > LINE_BYTES_MAX:
            raise ServiceUnusable(f"a line is longer than {LINE_BYTES_MAX} bytes")
        if others:
            yield b"".join(parts)
            *lines, last = others
            yield from lines
            parts, size = [last], len(last)
    if size:
        raise ServiceUnusable("the export was cut in the middle of a line")
