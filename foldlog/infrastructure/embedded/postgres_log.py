"""Opens, reads and rotates the log file of the embedded PostgreSQL server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from foldlog.infrastructure.files import copy_owner

LOG_BYTES_MAX = 10 * 2**20
TAIL_BYTES = 4_000


class PostgresLog:
    """The log file of the embedded PostgreSQL server.

    If the file gets too large, its content is moved to a second file with the suffix `.1`.
    """

    def __init__(self, path: Path):
        self._path = path
        self._start = 0

    def open(self) -> int:
        """Opens the log file for a new PostgreSQL server, and returns its file descriptor.

        After this call, `tail` returns only text that the new server has written.
        """
        self.rotate_if_large()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        copy_owner(self._path)
        self._start = os.fstat(fd).st_size
        return fd

    def tail(self) -> str:
        """Returns the last `TAIL_BYTES` bytes of the text written since the call of `open`."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(self._start, size), size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def last_line(self) -> str:
        """Returns the last line that was written since the call of `open`, or an empty text."""
        return (self.tail().splitlines() or [""])[-1]

    def rotate_if_large(self) -> None:
        """If the log file is larger than `LOG_BYTES_MAX`, moves its content to the file `.1`.

        The content is copied and the log file is then truncated, because PostgreSQL keeps the file
        open. Lines that PostgreSQL writes between the two steps are lost. PostgreSQL's own log
        collector would keep all lines, but it starts too late to log why a start failed.
        """
        if self._path.exists() and self._path.stat().st_size > LOG_BYTES_MAX:
            older = self._path.with_name(self._path.name + ".1")
            older.unlink(missing_ok=True)
            older.touch(mode=0o600)
            shutil.copyfile(self._path, older)
            copy_owner(older)
            os.truncate(self._path, 0)
            self._start = 0
