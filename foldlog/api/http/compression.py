"""Compresses responses with an encoding that the client accepts.

If a response is sent in pieces, each piece is compressed and flushed separately, so the client can
decode a piece as soon as it arrives. Without the flush, the compressor would hold back some MB of
data, and the client would lose them if the connection broke.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Protocol

import brotli
from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header

from .replies import Reply

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: On pages of events it is faster than the next levels, and the result is as small.
ZSTD_LEVEL = 1
BROTLI_QUALITY = 4
#: 2^20 bytes. Pages of a snapshot resemble each other, so a larger window would gain little.
BROTLI_WINDOW_LOG = 20
GZIP_LEVEL = 5


class Deflater(Protocol):
    """Compresses a response with one content encoding."""

    def piece(self, data: bytes) -> bytes:
        """Compresses `data` and returns the compressed bytes. The client can decode all of `data`
        from them at once, before later pieces arrive."""

    def end(self) -> bytes: ...


class _Zstd:
    def __init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)

    def piece(self, data: bytes) -> bytes:
        return self._compressor.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._compressor.flush()


class _Brotli:
    def __init__(self) -> None:
        self._compressor = brotli.Compressor(quality=BROTLI_QUALITY, lgwin=BROTLI_WINDOW_LOG)

    def piece(self, data: bytes) -> bytes:
        done: bytes = self._compressor.process(data) + self._compressor.flush()
        return done

    def end(self) -> bytes:
        done: bytes = self._compressor.finish()
        return done


class _Gzip:
    def __init__(self) -> None:
        self._compressor = zlib.compressobj(GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)

    def piece(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._compressor.flush()


#: in the order of our preference, which decides between encodings of equal weight
DEFLATERS: dict[str, Callable[[], Deflater]] = {"zstd": _Zstd, "br": _Brotli, "gzip": _Gzip}


#: A smaller response fits into one packet with its headers, so it is sent uncompressed.
BYTES_MIN = 1_024
ACCEPT_LENGTH_KEPT_MAX = 200
#: Media types to compress. The live stream stays uncompressed: ten thousand streams with a
#: compressor each would take more memory than all the rest.
MEDIA_TYPES = ("application/json", "application/x-ndjson", "text/html")


def encoding_for(reply: Reply, accept_encoding: str) -> str | None:
    """Chooses the content encoding of a response, and returns its name, for example `gzip`. Returns
    `None` if the response should be sent uncompressed.

    The function also sets the headers `Vary` and `Content-Encoding` of the response.
    """
    if reply.media_type not in MEDIA_TYPES:
        return None
    reply.headers["Vary"] = ", ".join(filter(None, [reply.headers.get("Vary"), "Accept-Encoding"]))
    if isinstance(reply.body, bytes) and len(reply.body) < BYTES_MIN:
        return None
    if len(accept_encoding) > ACCEPT_LENGTH_KEPT_MAX:
        return None
    encoding = _best_of(accept_encoding)
    if encoding is not None:
        reply.headers["Content-Encoding"] = encoding
    return encoding


@lru_cache(maxsize=256)
def _best_of(accept_encoding: str) -> str | None:
    accepted = parse_accept_header(accept_encoding, Accept)
    best = accepted.best_match([*DEFLATERS, "identity"])
    return best if best in DEFLATERS else None


def deflated(data: bytes, encoding: str) -> bytes:
    """Compresses a whole response body and returns the compressed bytes.

    For a page of events, the compression takes some milliseconds. Other threads can run during this
    time, because the compressor releases Python's global lock.
    """
    if encoding == "zstd":
        return zstd.compress(data, ZSTD_LEVEL)
    deflater = DEFLATERS[encoding]()
    return deflater.piece(data) + deflater.end()


#: `deflated` for the few bodies that are the same in every answer
deflated_once = lru_cache(maxsize=16)(deflated)


def deflated_pieces(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    deflater = DEFLATERS[encoding]()
    for piece in pieces:
        yield deflater.piece(piece)
    yield deflater.end()
