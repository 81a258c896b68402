"""Bodies: bounded while they come in, and inflated within bounds.

Nothing here trusts a length that a client says. A body is read in pieces, each is inflated to no
more than what is still allowed, and the first byte too many ends it. What has come counts at once:
whoever withholds the end of a body holds its bytes all the same.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from threading import Lock
from typing import Protocol

from werkzeug.http import parse_options_header

from foldlog.domain.errors import InvalidRequest, LimitExceeded, RateLimited
from foldlog.domain.limits import Limits

from .problems import UnsupportedMediaType
from .rates import rate_key
from .requests import Request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT_TYPE_LENGTH_MAX = 200
#: Python refuses to read a number of some thousand digits.
LENGTH_DIGITS_MAX = 19
#: of a body that is read at once, and not counted among those that a worker holds
SMALL_BODY_BYTES = 64 * 2**10
#: RFC 9659: what a decoder of the content coding must hold, and all that ours will.
ZSTD_WINDOW_LOG_MAX = 23


class Inflater(Protocol):
    """What zlib's and zstd's decompressors have in common."""

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


class BodiesHeld:
    """Bytes of bodies that this process holds, whoever sent them: so there is one such count."""

    def __init__(self) -> None:
        self._bytes = 0
        self._bytes_of: Counter[str] = Counter()  #: by caller
        self._lock = Lock()

    def add(self, caller: str, size: int, limits: Limits) -> None:
        """Raises `RateLimited` if there is no room for so many more; then none is taken."""
        most, own = limits.bodies_bytes_max, limits.bodies_bytes_per_caller_max
        with self._lock:
            if own and caller and self._bytes_of[caller] + size > own:
                raise RateLimited("bodies_bytes_per_caller_max", own)
            if self._bytes + size > most:
                raise RateLimited("bodies_bytes_max", most)
            self._bytes += size
            self._bytes_of[caller] += size

    def release(self, caller: str, size: int) -> None:
        with self._lock:
            self._bytes -= size
            self._bytes_of[caller] -= size
            if not self._bytes_of[caller]:
                del self._bytes_of[caller]


HELD = BodiesHeld()


class Reservation:
    """What one body takes as it grows, until it has been read: `with` it."""

    __slots__ = ("_caller", "_held", "_limits", "_request", "_size")

    def __init__(self, request: Request, limits: Limits):
        self._request = request
        self._limits = limits
        self._caller = rate_key(request)
        self._size = 0
        self._held = 0

    def grow(self, size: int) -> None:
        """The body has so many bytes now. Raises `RateLimited`."""
        before, self._size = self._size, size
        self._request.rates.count_body(self._request, size - before)
        more = size - SMALL_BODY_BYTES - self._held
        if more > 0:
            HELD.add(self._caller, more, self._limits)
            self._held += more

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            HELD.release(self._caller, self._held)


async def read_body(
    request: Request, limits: Limits, room: Reservation, limit: str = "body_bytes_max"
) -> bytearray:
    """The request's body, inflated; of no more bytes, as they come, than `limit` says. Raises
    `LimitExceeded`, `RateLimited`, `InvalidRequest`, or 415."""
    pieces = pieces_of(request, getattr(limits, limit), limit)
    _check_media_type(request.header("content-type"))
    encoding = request.header("content-encoding").strip().lower()
    if encoding not in INFLATERS and encoding not in ("", "identity"):
        raise UnsupportedMediaType("a body may be sent as it is, or by gzip or zstd")
    body = bytearray()
    if encoding in INFLATERS:
        await _inflate(body, pieces, INFLATERS[encoding](), request, limits, room)
    else:
        async for piece in pieces:
            body += piece
            room.grow(len(body))
    return body


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    media_type, parameters = parse_options_header(content_type)
    charset = parameters.get("charset", "utf-8").lower()
    return media_type.lower() == "application/json" and charset in ("utf-8", "utf8")


def _check_media_type(content_type: str) -> None:
    # What is remembered must not be as long as a stranger likes.
    if len(content_type) > CONTENT_TYPE_LENGTH_MAX or not _is_json(content_type):
        raise UnsupportedMediaType("a body must be application/json, in UTF-8")


async def pieces_of(
    request: Request, bytes_max: int, limit: str = "body_bytes_max"
) -> AsyncIterator[bytes]:
    """The body as it comes over the wire, to its end or to the limit."""
    length = request.header("content-length")
    if length.isdecimal() and (len(length) > LENGTH_DIGITS_MAX or int(length) > bytes_max):
        raise LimitExceeded(limit, bytes_max)
    pieces = request.pieces()
    while True:
        try:
            piece = await anext(pieces, b"")
        except Exception as exc:
            # Each server has errors of its own for a body that breaks off or is badly chunked.
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
    room: Reservation,
) -> None:
    async for piece in pieces:
        if inflater.eof:
            raise InvalidRequest("the compressed body has something after its end")
        # One more byte than allowed, to tell what just fits from what does not.
        left = limits.inflated_bytes_max - len(body) + 1
        try:
            body += inflater.decompress(piece, max_length=left)
        except (zlib.error, zstd.ZstdError) as exc:
            raise InvalidRequest("the compressed body cannot be inflated") from exc
        room.grow(max(len(body), request.bytes_in))
        if len(body) > limits.inflated_bytes_max:
            raise LimitExceeded("inflated_bytes_max", limits.inflated_bytes_max)
        if inflater.unused_data:
            raise InvalidRequest("the compressed body has something after its end")
    if not inflater.eof:
        raise InvalidRequest("the compressed body breaks off")
