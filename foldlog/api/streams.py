"""Answers that are sent while they are made: in pieces, each of which arrives when it is ready.

Flask-Compress compresses a stream too, but keeps what a compressor keeps: up to some MB, which a
reader would wait for, and would lose if the stream were cut. Here each piece is flushed.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import brotli
from flask import Response, request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_LEVEL = 3
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


def streamed(pieces: Iterable[bytes], media_type: str) -> Response:
    """An answer of pieces, compressed as the client can read it."""
    encoding = request.accept_encodings.best_match([*DEFLATERS, "identity"])
    if encoding not in DEFLATERS:
        return Response(pieces, mimetype=media_type)
    response = Response(_deflated(pieces, DEFLATERS[encoding]()), mimetype=media_type)
    response.headers["Content-Encoding"] = encoding
    return response


def _deflated(pieces: Iterable[bytes], deflater: Deflater) -> Iterator[bytes]:
    for piece in pieces:
        yield deflater.piece(piece)
    yield deflater.end()
