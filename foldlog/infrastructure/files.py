"""Files that hold secrets or proofs: private, written atomically, flushed to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def copy_owner(path: Path) -> None:
    """Gives a file to the owner of its folder, if we are root.

    The data folder of an ordinary user stays usable for that user after root worked on it.
    """
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_folder(path: Path) -> None:
    """Makes a folder that only its owner can read, if it is missing."""
    if not path.exists():
        path.mkdir(mode=0o700)
        copy_owner(path)


def write_new(
    path: Path, text: str, mode: int, *, set_owner: Callable[[Path], None] = copy_owner
) -> None:
    """Writes a file atomically: after a crash it has its old or its new content, complete.

    `set_owner` sets the owner of the file. By default the file gets the owner of its folder.
    """
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(unfinished, flags, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        set_owner(unfinished)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flushes the names in a folder to the disk, so that new and renamed files survive a crash."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
