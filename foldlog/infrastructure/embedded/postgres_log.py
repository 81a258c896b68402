"""What PostgreSQL says, kept in a file that cannot grow without end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .folder import follow_owner

LOG_BYTES_MAX = 10 * 2**20
TAIL_BYTES = 4_000


class PostgresLog:
    def __init__(self, path: Path):
        self._path = path
        self._start = 0

    def open(self) -> int:
        """Opens it for a new postmaster to write to; the tail starts here."""
        self.rotate_if_large()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        follow_owner(self._path)
        self._start = os.fstat(fd).st_size
        return fd

    def tail(self) -> str:
        """The end of what has been said since it was opened."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(self._start, size), size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def last_line(self) -> str:
        return (self.tail().splitlines() or [""])[-1]

    def rotate_if_large(self) -> None:
        """Keeps one older file. The postmaster goes on with its file, which is cut to nothing.

        A line written between the copy and the cut is lost; PostgreSQL's own collector would
        lose none, but it writes what the postmaster says too late to tell why a start failed.
        """
        if self._path.exists() and self._path.stat().st_size > LOG_BYTES_MAX:
            older = self._path.with_name(self._path.name + ".1")
            older.unlink(missing_ok=True)
            older.touch(mode=0o600)
            shutil.copyfile(self._path, older)
            follow_owner(older)
            os.truncate(self._path, 0)
            self._start = 0
