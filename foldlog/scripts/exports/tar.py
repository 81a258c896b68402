"""Reads the files of a tar archive one after another, each within a limit.

The module `tarfile` of Python follows all extensions of the format. With some of them a header of a
few bytes makes it read gigabytes into memory, for example a long name. This reader accepts ordinary
files with short names, and refuses everything else.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from foldlog.infrastructure.postgres.append.transfer import InvalidExport

from .bounded import ExportFile

BLOCK = tarfile.BLOCKSIZE
#: tar programs fill the end of an archive with zeros to a multiple of their block size
END_BYTES_MAX = 2**20
ORDINARY = (tarfile.REGTYPE, tarfile.AREGTYPE)


class Member(NamedTuple):
    """The name and the size, in bytes, of one file in an archive."""

    name: str
    size: int


class TarReader:
    """Reads a tar archive from the beginning to the end.

    Call `next`, and then either `read` or `lines`, for each file in turn. All methods raise
    `InvalidExport` if the archive is truncated, or is of another form than described above.
    """

    def __init__(self, file: ExportFile):
        self._file = file
        self._member = Member("", 0)
        self._left = 0  #: the bytes of the current file that are still to be read

    def next(self) -> Member | None:
        """Returns the next file, or `None` at the end of the archive."""
        assert self._left == 0, "the current file is still to be read"
        self._file.exactly(-self._member.size % BLOCK)
        block = self._file.exactly(BLOCK)
        if not any(block):
            self._check_end()
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as exc:
            raise InvalidExport(f"this is not a tar archive, or it is damaged: {exc}") from exc
        if header.type not in ORDINARY or header.size < 0 or header.sparse is not None:
            raise InvalidExport(f"{header.name[:100]} does not belong in an archive")
        self._member = Member(header.name, header.size)
        self._left = header.size
        return self._member

    def check_size(self, bytes_max: int) -> None:
        """Raises `InvalidExport` if the current file is larger than `bytes_max` bytes."""
        name, size = self._member
        if size > bytes_max:
            raise InvalidExport(f"{name} has {size} bytes, and may have {bytes_max}")

    def read(self, bytes_max: int) -> bytes:
        """Returns the content of the current file, which may have `bytes_max` bytes."""
        self.check_size(bytes_max)
        self._left = 0
        return self._file.exactly(self._member.size)

    def lines(self) -> Iterator[bytes]:
        """Yields the lines of the current file, without their newlines."""
        while self._left:
            line = self._file.line(self._left)
            if not line:
                raise InvalidExport("the file is truncated")
            self._left -= len(line)
            yield line.removesuffix(b"\n")

    def _check_end(self) -> None:
        """Reads to the end of the file, which also checks the checksum of gzip."""
        rest = self._file.some(END_BYTES_MAX + 1)
        if len(rest) > END_BYTES_MAX or any(rest):
            raise InvalidExport("more bytes follow the end of the archive")
