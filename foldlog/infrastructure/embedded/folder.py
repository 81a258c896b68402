"""The data folder: its layout, its lock, and the passwords in it."""

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
    """The paths in a data folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "postgres"

    @property
    def unfinished(self) -> Path:
        """A new cluster is made here and renamed to `data` when it is complete."""
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
        """The socket's folder: `run/`, or a temp folder if that path is too long or has , or "."""
        run = self.folder / "run"
        is_short = len(os.fsencode(run / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX
        if is_short and not set(str(run)) & set(',"'):
            return run
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"foldlog-{name}"

    def prepare(self) -> None:
        """Makes the folder. Other users cannot read it; PostgreSQL's user can traverse it."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.exists():
            self.folder.mkdir(mode=mode, exist_ok=True)
            self.folder.chmod(mode)  # mkdir applies the umask

    def prepare_inside(self, account: Account) -> None:
        """Makes the folders of the log and the socket."""
        make_folder(self.log.parent)
        make_private_folder(self.sockets, account)

    def tidy(self) -> None:
        """Removes the socket's folder if it is outside of the data folder."""
        if self.sockets.parent != self.folder:
            with contextlib.suppress(OSError):
                self.sockets.rmdir()


def make_private_folder(path: Path, account: Account) -> None:
    """Makes a folder of PostgreSQL's user. Raises `DataFolderUnusable` if another user owns it."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        account.own(path)
        path.chmod(0o700)
    elif not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid:
        raise DataFolderUnusable(f"{path} belongs to user id {found.st_uid}, not to {account.uid}")


class Passwords:
    """The passwords of the roles, in files that only our own user can read."""

    def __init__(self, folder: Path):
        self._folder = folder / "secrets"

    def find(self, role: str) -> str | None:
        """Returns the saved password of a role, or `None`."""
        try:
            return self._path(role).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def save(self, role: str, password: str) -> None:
        make_folder(self._folder)
        self._folder.chmod(0o700)
        write_new(self._path(role), password + "\n", 0o600)

    def ensure(self, role: str) -> str:
        """Returns the password of a role; makes and saves one if it is missing."""
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
    """The process that owns a folder, and the folder of its server's socket."""

    pid: int
    sockets: Path


class FolderLock:
    """The lock of a data folder. The kernel releases it when the owner's process ends."""

    def __init__(self, path: Path):
        self._path = path
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    def acquire(self, holder: Holder) -> bool:
        """Takes the lock and writes the holder into it; returns False if it is taken."""
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
        """Returns the holder in the lock file; `None` until the new holder is written."""
        pid, _, rest = self._path.read_text(encoding="utf-8").partition("\n")
        sockets, end, _ = rest.partition("\n")
        return Holder(int(pid), Path(sockets)) if end else None

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
