"""Reads request bodies and decompresses them, within limits on their size.

The limits hold even if `Content-Length` is wrong: the body is read in pieces, and reading stops at
the first byte beyond the limit. A piece is decompressed only up to the limit on the decompressed
size. The bytes in memory are counted after each piece, because an incomplete body uses memory too,
and a slow client may need a long time to complete the body.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Protocol

from werkzeug.http import parse_options_header

from foldlog.domain.errors import InvalidRequest, LimitExceeded, RateLimited
from foldlog.domain.fairness import Exceeded
from foldlog.domain.limits import Limits

from .problems import UnsupportedMediaType
from .requests import Request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT_TYPE_LENGTH_MAX = 200
#: Python refuses to parse a number of more than some thousand digits.
LENGTH_DIGITS_MAX = 19
#: A body up to this size is decoded on the event loop, and is left out of the count of bytes in
#: memory.
SMALL_BODY_BYTES = 64 * 2**10
#: The base-2 logarithm of the largest zstd window that the service accepts, in bytes. RFC 9659
#: requires decoders to accept this size.
ZSTD_WINDOW_LOG_MAX = 23


class Inflater(Protocol):
    """Declares the methods that the decompressors of zlib and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


def _gzip() -> Inflater:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd() -> Inflater:
    options = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG_MAX}
    return zstd.ZstdDecompressor(options=options)


INFLATERS: dict[str, Callable[[], Inflater]] = {"gzip": _gzip, "x-gzip": _gzip, "zstd": _zstd}


class Reservation:
    """Adds the size of one request body to the number of body bytes that the web worker has in
    memory. At the end of the `with` block, the size is subtracted again."""

    __slots__ = ("_held", "_key", "_request", "_size")

    def __init__(self, request: Request):
        self._request = request
        self._key = request.subject.key
        self._size = 0
        self._held = 0

    def grow(self, size: int) -> None:
        """Records that the body now has `size` bytes in total.

        Raises `RateLimited` if the bodies of this caller, or of all callers together, use too many
        bytes of memory. Also raises `RateLimited` if the caller has used up a rate limit: a large
        body counts as several requests.
        """
        before, self._size = self._size, size
        self._request.rates.count_body(self._request.subject, size - before)
        more = size - SMALL_BODY_BYTES - self._held
        if more > 0:
            bodies = self._request.resources.bodies
            exceeded = bodies.take(self._key, more)
            if exceeded is Exceeded.SHARE:
                raise RateLimited("bodies_bytes_per_caller_max", bodies.share)
            if exceeded is Exceeded.SIZE:
                raise RateLimited("bodies_bytes_max", bodies.size)
            self._held += more

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._request.resources.bodies.release(self._key, self._held)


async def read_body(
    request: Request, limits: Limits, reservation: Reservation, limit: str = "body_bytes_max"
) -> bytearray:
    """Reads the body of a request and returns its decompressed bytes.

    `limit` is the name of the limit on the size of the body before decompression. Raises
    `LimitExceeded` if the body is larger than this limit, or if its decompressed bytes are larger
    than `inflated_bytes_max`. Raises `RateLimited` if too many bytes of bodies are in memory, or if
    the caller has used up a rate limit. Raises `InvalidRequest` if the body is incomplete or its
    compressed data is broken. Raises `UnsupportedMediaType` if the media type or the encoding is
    unsupported.
    """
    pieces = pieces_of(request, getattr(limits, limit), limit)
    _check_media_type(request.header("content-type"))
    encoding = request.header("content-encoding").strip().lower()
    if encoding not in INFLATERS and encoding not in ("", "identity"):
        raise UnsupportedMediaType("send the body as it is, or encoded with gzip or zstd")
    body = bytearray()
    if encoding in INFLATERS:
        await _inflate(body, pieces, INFLATERS[encoding](), request, limits, reservation)
    else:
        async for piece in pieces:
            body += piece
            reservation.grow(len(body))
    return body


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    media_type, parameters = parse_options_header(content_type)
    charset = parameters.get("charset", "utf-8").lower()
    return media_type.lower() == "application/json" and charset in ("utf-8", "utf8")


def _check_media_type(content_type: str) -> None:
    # The length is bounded because the cache keeps the texts.
    if len(content_type) > CONTENT_TYPE_LENGTH_MAX or not _is_json(content_type):
        raise UnsupportedMediaType("a body must be application/json, in UTF-8")


async def pieces_of(
    request: Request, bytes_max: int, limit: str = "body_bytes_max"
) -> AsyncIterator[bytes]:
    """Yields the body of a request in pieces as they arrive.

    Raises `LimitExceeded` if the body is longer than `bytes_max`. Raises `InvalidRequest` if the
    body cannot be read to its end.
    """
    length = request.header("content-length")
    if length.isdecimal() and (len(length) > LENGTH_DIGITS_MAX or int(length) > bytes_max):
        raise LimitExceeded(limit, bytes_max)
    pieces = request.pieces()
    while True:
        try:
            piece = await anext(pieces, b"")
        except Exception as exc:
            # Each server has its own error for a body that breaks off or has broken chunks.
            raise InvalidRequest("the body could not be read to its end") from exc
        if not piece:
            return
        request.bytes_in += len(piece)
        if request.bytes_in > bytes_max:
            raise LimitExceeded(limit, bytes_max)
        yield piece


async def _inflate(
    body: bytearray,
    pieces: AsyncIterator[bytes],
    inflater: Inflater,
    request: Request,
    limits: Limits,
    reservation: Reservation,
) -> None:
    async for piece in pieces:
        if inflater.eof:
            raise InvalidRequest("the compressed body has bytes after its end")
        # One byte more than allowed is read, to detect a body that is too long.
        left = limits.inflated_bytes_max - len(body) + 1
        try:
            body += inflater.decompress(piece, max_length=left)
        except (zlib.error, zstd.ZstdError) as exc:
            raise InvalidRequest("the compressed body cannot be inflated") from exc
        reservation.grow(max(len(body), request.bytes_in))
        if len(body) > limits.inflated_bytes_max:
            raise LimitExceeded("inflated_bytes_max", limits.inflated_bytes_max)
        if inflater.unused_data:
            raise InvalidRequest("the compressed body has bytes after its end")
    if not inflater.eof:
        raise InvalidRequest("the compressed body breaks off")
