"""Writes files that contain secrets or proofs.

The files are readable only by their owner, are written atomically, and are flushed to the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def copy_owner(path: Path) -> None:
    """Gives a file the same owner as its folder, if this process is root.

    After root has worked on the data folder of an ordinary user, this user can still use the
    folder.
    """
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_folder(path: Path) -> None:
    """Creates a folder that only its owner can read, if the folder is missing."""
    if not path.exists():
        path.mkdir(mode=0o700)
        copy_owner(path)


def write_new(
    path: Path, text: str, mode: int, *, set_owner: Callable[[Path], None] = copy_owner
) -> None:
    """Writes a file atomically: after a crash, the file has either its old or its new content.

    `set_owner(path)` sets the owner of the new file. By default, the file gets the owner of its
    folder. Returns after the file is flushed to the disk.
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
    """Flushes the list of a folder's file names to the disk.

    Afterwards, new and renamed files in this folder survive a crash.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
