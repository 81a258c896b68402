"""Opens an export for reading, and reads it in small pieces.

A file may come from a person that the operator distrusts: a few megabytes of gzip can inflate to
terabytes. Therefore each read of this module has a limit, and the limit is checked before the bytes
are in memory.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from foldlog.domain.limits import LIMITS
from foldlog.infrastructure.postgres.append.transfer import InvalidExport

#: Of one line: the largest event, and the salts of its operations after an erasure.
LINE_BYTES_MAX = LIMITS.event_bytes_max + 2**18
GZIP_MAGIC = b"\x1f\x8b"


class ExportFile:
    """A file that may be hostile. Every method reads a bounded number of bytes.

    All methods raise `InvalidExport` if the file is truncated or damaged.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file

    def line(self, bytes_left: int = LINE_BYTES_MAX + 1) -> bytes:
        """Returns the next line with its newline, or `b""` at the end of the file. The line ends
        at the latest after `bytes_left` bytes.

        Raises `InvalidExport` if the line is longer than `LINE_BYTES_MAX` bytes.
        """
        with _readable():
            line = self._file.readline(min(bytes_left, LINE_BYTES_MAX + 1))
        if len(line) > LINE_BYTES_MAX:
            raise InvalidExport(f"a line is longer than {LINE_BYTES_MAX} bytes")
        return line

    def lines(self) -> Iterator[bytes]:
        """Yields all further lines, without their newlines."""
        while line := self.line():
            yield line.removesuffix(b"\n")

    def some(self, bytes_max: int) -> bytes:
        """Returns the next bytes: `bytes_max` of them, or fewer at the end of the file."""
        with _readable():
            return self._file.read(bytes_max)

    def exactly(self, size: int) -> bytes:
        """Returns the next `size` bytes. Raises `InvalidExport` if the file ends before."""
        found = self.some(size)
        if len(found) < size:
            raise InvalidExport("the file is truncated")
        return found


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error) as exc:
        raise InvalidExport(f"the file is truncated or damaged: {exc}") from exc


@contextmanager
def open_export(name: str) -> Iterator[tuple[ExportFile, bool]]:
    """Opens an export while the `with` block runs. `-` is standard input.

    The block gets the file, and whether it is an archive instead of JSON lines. Both answers come
    from the first bytes of the file: gzip is inflated, and lines begin with `{`. Raises
    `InvalidExport` if the beginning of a gzip file is damaged.
    """
    with _opened(name) as raw:
        file = raw
        if raw.peek(2)[:2] == GZIP_MAGIC:
            file = cast(io.BufferedReader, gzip.GzipFile(fileobj=raw))
        with _readable():
            first = file.peek(1)[:1]
        yield ExportFile(file), first not in (b"{", b"")


@contextmanager
def _opened(name: str) -> Iterator[io.BufferedReader]:
    if name == "-":
        yield cast(io.BufferedReader, sys.stdin.buffer)
        return
    with Path(name).open("rb") as file:
        yield file
