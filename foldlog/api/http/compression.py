"""Compressing answers, as the client can read them.

A stream is compressed piece by piece, each of which can be read when it arrives: a compressor
would else keep up to some MB, which a reader would wait for, and would lose if it were cut.
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

#: on pages of events it is quicker than the next levels, and no larger
ZSTD_LEVEL = 1
BROTLI_QUALITY = 4
#: 2^20 bytes: pages of a snapshot are alike, a larger window costs memory and gains little
BROTLI_WINDOW_LOG = 20
GZIP_LEVEL = 5


class Deflater(Protocol):
    def piece(self, data: bytes) -> bytes:
        """All of what is compressed so far, so that it can be read as far as it has come."""

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


#: In the order of our preference, among those that a client likes as much.
DEFLATERS: dict[str, Callable[[], Deflater]] = {"zstd": _Zstd, "br": _Brotli, "gzip": _Gzip}


#: below this an answer fits one packet with its headers, and compressing saves nobody time
BYTES_MIN = 1_024
ACCEPT_LENGTH_KEPT_MAX = 200
#: What is worth compressing. Not the live stream: it waits for what is to come, ten thousand at a
#: time, and a compressor each would take more memory than all the rest.
MEDIA_TYPES = ("application/json", "application/x-ndjson", "text/html")


def encoding_for(reply: Reply, accept_encoding: str) -> str | None:
    """In which encoding a reply is sent; `None` as it is. Says so in the reply's headers."""
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
    """All at once. Takes milliseconds for a page of events, without holding Python's lock."""
    if encoding == "zstd":
        return zstd.compress(data, ZSTD_LEVEL)
    deflater = DEFLATERS[encoding]()
    return deflater.piece(data) + deflater.end()


#: `deflated`, of the few bodies that are the same for everybody
deflated_once = lru_cache(maxsize=16)(deflated)


def deflated_pieces(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    deflater = DEFLATERS[encoding]()
    for piece in pieces:
        yield deflater.piece(piece)
    yield deflater.end()
