"""Writes files that contain secrets or proofs, and flushes them to the disk.

Only the owner can read the folders that this module creates. A crash during a write leaves either
the old or the new content of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def copy_owner(path: Path) -> None:
    """Changes the owner of a file to the owner of its folder, if this process runs as root.

    Root may run Foldlog on the data folder of an ordinary user. The ordinary user must be able to
    read and write the new files afterwards.
    """
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_folder(path: Path) -> None:
    """Creates a folder that only its owner can read. An existing path is left unchanged."""
    if not path.exists():
        path.mkdir(mode=0o700)
        copy_owner(path)


def write_new(
    path: Path, text: str, mode: int, *, set_owner: Callable[[Path], None] = copy_owner
) -> None:
    """Writes a file atomically: after a crash, the file has either its old or its new content.

    The function returns after the content is flushed to the disk. `mode` contains the permission
    bits of the new file. `set_owner(path)` is called to set the owner of the new file. By default,
    the file gets the owner of its folder.
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
    """Flushes a folder's directory entries to the disk (fsync).

    After this call, the files that were created or renamed in the folder survive a crash.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
