"""Taking turns: of all who have one file open, one does a thing at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class FileLockTaken(Exception):
    """Another process, or thread, has it."""


@contextmanager
def file_lock(path: Path, what: str = "sync") -> Iterator[None]:
    """The turn to sync the replica at `path`, or to do what else only one of all shall do.

    The system gives it back if its holder dies. Raises `FileLockTaken` if somebody else has it.
    """
    with path.with_name(f"{path.name}-{what}").open("ab") as file:
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
