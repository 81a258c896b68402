"""The data folder: who holds it, and where in it things are."""

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

from .account import Account
from .errors import DataFolderUnusable

PORT = 5432  #: there is no TCP; it is only the end of the socket's name
SOCKET_NAME = f".s.PGSQL.{PORT}"
#: `sun_path` less its closing NUL
SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103

PASSWORD_BYTES = 32


@dataclass(frozen=True)
class Layout:
    """The places in a data folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "postgres"

    @property
    def unfinished(self) -> Path:
        """Where a cluster is made; it gets its real name when it is whole."""
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
        """`run/`, unless its name is too long, or holds what PostgreSQL takes for a list."""
        run = self.folder / "run"
        is_short = len(os.fsencode(run / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX
        if is_short and not set(str(run)) & set(',"'):
            return run
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"foldlog-{name}"

    def prepare(self) -> None:
        """Makes the folder itself: nobody else may look in; PostgreSQL's user may pass through."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.exists():
            self.folder.mkdir(mode=mode, exist_ok=True)
            self.folder.chmod(mode)  # whatever the umask

    def prepare_inside(self, account: Account) -> None:
        make_folder(self.log.parent)
        make_private_folder(self.sockets, account)

    def tidy(self) -> None:
        """Takes away what was put outside of the folder."""
        if self.sockets.parent != self.folder:
            with contextlib.suppress(OSError):
                self.sockets.rmdir()


def make_private_folder(path: Path, account: Account) -> None:
    """A folder of PostgreSQL's user, refused if somebody else has made one of that name."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        account.own(path)
        path.chmod(0o700)
    elif not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid:
        raise DataFolderUnusable(f"{path} belongs to user id {found.st_uid}, not to {account.uid}")


def follow_owner(path: Path) -> None:
    """Gives what root has made to whoever owns the folder that it is in.

    So an ordinary user's data folder stays usable for that user after root has worked on it.
    """
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_folder(path: Path) -> None:
    """One that nobody else can look into."""
    if not path.exists():
        path.mkdir(mode=0o700)
        follow_owner(path)


def write_new(path: Path, text: str, mode: int, account: Account | None = None) -> None:
    """Writes a file that appears whole or not at all, also after a power cut.

    It is the account's, if one is given, else it follows its folder.
    """
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(unfinished, flags, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        follow_owner(unfinished)
        if account is not None:
            account.own(unfinished)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes names that were given or changed in a folder last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Passwords:
    """The passwords of the roles. They stay with us: PostgreSQL's user cannot read them."""

    def __init__(self, folder: Path):
        self._folder = folder / "secrets"

    def find(self, role: str) -> str | None:
        try:
            return self._path(role).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def keep(self, role: str, password: str) -> None:
        make_folder(self._folder)
        self._folder.chmod(0o700)
        write_new(self._path(role), password + "\n", 0o600)

    def ensure(self, role: str) -> str:
        found = self.find(role)
        if not found:
            found = make_password()
            self.keep(role, found)
        return found

    def _path(self, role: str) -> Path:
        return self._folder / f"{role}.password"


def make_password() -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES)


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, and where its server listens."""

    pid: int
    sockets: Path


class FolderLock:
    """One owner at a time. The kernel lets go of it when the owner dies, however it dies."""

    def __init__(self, path: Path):
        self._path = path
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    def acquire(self, holder: Holder) -> bool:
        """Takes the lock if it is free, and writes down who has it."""
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
            os.close(fd)  # a full disk: or else we would lock ourselves out for ever
            raise
        self._fd = fd
        return True

    def holder(self) -> Holder | None:
        """Who has the lock; None for the moment between taking it and writing that down."""
        pid, _, rest = self._path.read_text(encoding="utf-8").partition("\n")
        sockets, end, _ = rest.partition("\n")
        return Holder(int(pid), Path(sockets)) if end else None

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
