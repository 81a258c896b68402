"""Bodies: bounded while they come in, and inflated within bounds.

Nothing here trusts a length that a client says. A body is read in pieces, each is inflated to no
more than what is still allowed, and the first byte too many ends it.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from flask import g, request

from ..domain.errors import InvalidRequest, LimitExceeded
from ..domain.limits import Limits
from .problems import UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 64 * 2**10
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


def read_body(limits: Limits) -> bytearray:
    """The request's body, inflated. Raises `LimitExceeded`, `InvalidRequest`, or 415."""
    _check_media_type()
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        body = bytearray()
        for piece in _pieces(limits):
            body += piece
        return body
    if encoding not in INFLATERS:
        raise UnsupportedMediaType("a body may be sent as it is, or by gzip or zstd")
    return _inflated(INFLATERS[encoding](), limits)


def _check_media_type() -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("a body must be application/json, in UTF-8")


def _pieces(limits: Limits) -> Iterator[bytes]:
    """The body as it comes over the wire, to its end or to the limit."""
    if (request.content_length or 0) > limits.body_bytes_max:
        raise LimitExceeded("body_bytes_max", limits.body_bytes_max)
    g.bytes_in = 0
    while True:
        try:
            piece = request.stream.read(PIECE_BYTES)
        except Exception as exc:
            # Each server has errors of its own for a body that breaks off or is badly chunked.
            raise InvalidRequest("the body could not be read to its end") from exc
        if not piece:
            return
        g.bytes_in += len(piece)
        if g.bytes_in > limits.body_bytes_max:
            raise LimitExceeded("body_bytes_max", limits.body_bytes_max)
        yield piece


def _inflated(inflater: Inflater, limits: Limits) -> bytearray:
    body = bytearray()
    for piece in _pieces(limits):
        if inflater.eof:
            raise InvalidRequest("the compressed body has something after its end")
        # One more byte than allowed, to tell what just fits from what does not.
        room = limits.inflated_bytes_max - len(body) + 1
        try:
            body += inflater.decompress(piece, max_length=room)
        except (zlib.error, zstd.ZstdError) as exc:
            raise InvalidRequest("the compressed body cannot be inflated") from exc
        if len(body) > limits.inflated_bytes_max:
            raise LimitExceeded("inflated_bytes_max", limits.inflated_bytes_max)
        if inflater.unused_data:
            raise InvalidRequest("the compressed body has something after its end")
    if not inflater.eof:
        raise InvalidRequest("the compressed body breaks off")
    return body
