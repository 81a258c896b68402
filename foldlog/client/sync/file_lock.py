"""File locks, which make sure that only one process at a time syncs a replica or reads its live
channel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class FileLockTaken(Exception):
    """Raised by `file_lock` when another process or thread holds the same lock."""


@contextmanager
def file_lock(path: Path, purpose: str = "sync") -> Iterator[None]:
    """Holds a file lock of the replica at `path` while the `with` block runs.

    Each `purpose` ("sync" or "live") has its own lock. The operating system releases the lock
    if the process dies. Raises `FileLockTaken` at once if the lock is taken.
    """
    with path.with_name(f"{path.name}-{purpose}").open("ab") as file:
        _lock(file)
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as exc:
            raise FileLockTaken from exc

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise FileLockTaken from exc
