"""Gives the folder of a signer or a witness a random id, which stands in the folder itself.

The folder contains the last checkpoint of each log. The database names the one folder that may
sign. Therefore a second service, which lacks these checkpoints, never signs a fork. When another
folder takes over, this is also written into the old folder: a restored database may name the old
folder again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import msgspec

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.files import copy_owner, make_folder, sync_folder, write_new

from .keys import now_text

#: in upper case, because a folder of this name would otherwise be possible for a space
FILE = "FOLDER.json"
MODE = 0o600


class FolderUnusable(OperatorError):
    """The id of a folder with checkpoints is unreadable, or cannot be written."""

    code = "folder-unusable"


class Folder(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The id of a folder. If another folder has taken over, `taken_over_by` is the id of that
    folder, and this one never signs again."""

    version: Literal[1] = 1
    folder: str
    made_at: str
    taken_over_by: str | None = None
    taken_over_at: str | None = None

    def taken_over(self, by: str) -> Folder:
        return msgspec.structs.replace(self, taken_over_by=by, taken_over_at=now_text())


def new_folder() -> Folder:
    return Folder(folder=str(uuid4()), made_at=now_text())


def read_folder(path: Path) -> Folder | None:
    """Returns the id of a folder, or `None` if it has none yet.

    Raises `FolderUnusable` if the file with the id is damaged or unreadable.
    """
    try:
        return msgspec.json.decode((path / FILE).read_bytes(), type=Folder)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as exc:
        raise FolderUnusable(f"{path / FILE}: {exc}") from exc


def identify_folder(path: Path) -> Folder:
    """Returns the id of a folder, and makes the folder and its id if they are missing.

    If several processes do this at once, all get the same id. Raises `FolderUnusable` if the id is
    unreadable, or cannot be written.
    """
    found = read_folder(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            make_folder(path)
        _write_first(path, new_folder())
    except OSError as exc:
        raise FolderUnusable(f"cannot write {path / FILE}: {exc}") from exc
    found = read_folder(path)
    assert found is not None, "it was written just now"
    return found


def write_folder(path: Path, folder: Folder) -> None:
    """Replaces the id of a folder. Raises `OSError` if the file cannot be written."""
    write_new(path / FILE, _text(folder), MODE)


def _write_first(path: Path, folder: Folder) -> None:
    """Writes the id, unless another process was faster. A link never replaces a file."""
    own = path / f"{FILE}.{folder.folder}"
    with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w") as file:
        file.write(_text(folder))
        file.flush()
        os.fsync(file.fileno())
    copy_owner(own)
    try:
        with suppress(FileExistsError):
            os.link(own, path / FILE)
    finally:
        own.unlink()
    sync_folder(path)


def _text(folder: Folder) -> str:
    return msgspec.json.format(msgspec.json.encode(folder)).decode() + "\n"
