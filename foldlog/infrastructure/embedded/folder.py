"""Manages the data folder of the embedded server.

This module defines the paths in the folder, locks the folder, and stores the passwords of the
database roles.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from foldlog.infrastructure.files import make_folder, write_new

from .account import Account
from .errors import DataFolderUnusable

PORT = 5432  #: only part of the socket's name, because TCP is off
SOCKET_NAME = f".s.PGSQL.{PORT}"
#: the system's limit for the path of a unix socket, minus the final NUL
SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103

PASSWORD_BYTES = 32


@dataclass(frozen=True)
class Layout:
    """The paths of all files and folders in one data folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "postgres"

    @property
    def unfinished(self) -> Path:
        """The path of the temporary folder in which a new database cluster is created.

        When the cluster is complete, this folder is renamed to the path `data`.
        """
        return self.folder / "postgres.new"

    @property
    def defaults(self) -> Path:
        return self.folder / "foldlog.conf"

    @property
    def log(self) -> Path:
        return self.folder / "log" / "postgres.log"

    @property
    def lock(self) -> Path:
        return self.folder / "foldlog.lock"

    @property
    def sockets(self) -> Path:
        """The path of the folder that contains the unix socket of the server.

        This is usually `run/` in the data folder. If the path of `run/` is too long for a socket,
        or contains a comma or a double quote, it is a folder in the system's temp folder.
        """
        run = self.folder / "run"
        is_short = len(os.fsencode(run / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX
        if is_short and not set(str(run)) & set(',"'):
            return run
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"foldlog-{name}"

    def prepare(self) -> None:
        """Creates the data folder if it is missing. Only its owner can list the files in it.

        If this process is root, the new folder allows other users to pass through it, because
        another user runs PostgreSQL.
        """
        mode = 0o711 if os.geteuid() == 0 else 0o700
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.exists():
            self.folder.mkdir(mode=mode, exist_ok=True)
            self.folder.chmod(mode)  # mkdir applies the umask

    def prepare_inside(self, account: Account) -> None:
        """Creates the folder of PostgreSQL's log and the folder of the unix socket.

        The owner of the socket's folder is `account`, the user that runs PostgreSQL.
        """
        make_folder(self.log.parent)
        make_private_folder(self.sockets, account)

    def tidy(self) -> None:
        """Deletes the folder of the unix socket, if it is in the system's temp folder."""
        if self.sockets.parent != self.folder:
            with contextlib.suppress(OSError):
                self.sockets.rmdir()


def make_private_folder(path: Path, account: Account) -> None:
    """Creates a folder that only PostgreSQL's user (`account`) can enter.

    An existing folder is used if its owner is `account` or the current user. Raises
    `DataFolderUnusable` if it has another owner, or if the path is a file or a symbolic link.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        account.own(path)
        path.chmod(0o700)
    elif not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid:
        raise DataFolderUnusable(f"{path} belongs to user id {found.st_uid}, not to {account.uid}")


class Passwords:
    """Stores the passwords of the database roles, each in its own file.

    Only the current user can read these files.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "secrets"

    def find(self, role: str) -> str | None:
        """Returns the saved password of a role, or `None` if it is missing."""
        try:
            return self._path(role).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def save(self, role: str, password: str) -> None:
        make_folder(self._folder)
        self._folder.chmod(0o700)
        write_new(self._path(role), password + "\n", 0o600)

    def ensure(self, role: str) -> str:
        """Returns the saved password of a role. If it is missing, makes and saves a new one."""
        found = self.find(role)
        if not found:
            found = make_password()
            self.save(role, found)
        return found

    def _path(self, role: str) -> Path:
        return self._folder / f"{role}.password"


def make_password() -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES)


@dataclass(frozen=True)
class Holder:
    """The content of a lock file: which process owns the data folder.

    It contains the id of this process, and the path of the folder with the server's unix socket.
    """

    pid: int
    sockets: Path


class FolderLock:
    """The lock of a data folder. The process that holds the lock owns the folder and its server.

    It is a file lock (flock), so the kernel releases it when this process ends.
    """

    def __init__(self, path: Path):
        self._path = path
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    def acquire(self, holder: Holder) -> bool:
        """Tries to take the lock without waiting, and returns whether this succeeded.

        After a success, `holder` is written into the lock file, so other processes can read who
        holds the lock.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{holder.pid}\n{holder.sockets}\n".encode(), 0)
        except OSError:
            os.close(fd)  # a full disk: without this close, our own lock would exclude us
            raise
        self._fd = fd
        return True

    def holder(self) -> Holder | None:
        """Reads from the lock file which process holds the lock.

        Returns `None` if the lock file is empty. The file is empty after the lock was released. It
        is also empty for a moment after another process has taken the lock.
        """
        pid, _, rest = self._path.read_text(encoding="utf-8").partition("\n")
        sockets, end, _ = rest.partition("\n")
        return Holder(int(pid), Path(sockets)) if end else None

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
