"""Selects the user of the operating system that runs PostgreSQL's processes.

If Foldlog runs as root, another user runs PostgreSQL, because PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from .errors import DataFolderUnusable

SYSTEM_USER = "foldlog"
SYSTEM_USER_FALLBACK = "nobody"
#: The administrator may run another useradd at the same time: ours then fails, and tries again.
USERADD_ATTEMPTS_MAX = 10
#: The folder of the password file. Processes of Foldlog lock it to create the user one at a time.
ACCOUNTS_FOLDER = "/etc"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Account:
    """The user of the operating system that runs PostgreSQL's processes.

    `is_other` is true if this user differs from the user of the current process.
    """

    uid: int
    gid: int
    is_other: bool

    def process_options(self) -> dict[str, Any]:
        """Returns a dict of keyword arguments for `subprocess`, to start a process of PostgreSQL.

        With these arguments the process runs as the user of this `Account`. It gets only a few
        environment variables, because Foldlog's environment may contain the admin token and PG*
        variables. Its working folder is `/`, because every user can enter this folder.
        """
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        if path := os.environ.get("LD_LIBRARY_PATH"):
            env["LD_LIBRARY_PATH"] = path
        options: dict[str, Any] = {
            "cwd": "/",
            "env": env,
            "umask": 0o077,
            "start_new_session": True,
        }
        if self.is_other:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def own(self, path: Path) -> None:
        """Makes the user of this `Account` the owner of a file or folder.

        If this user also runs the current process, the owner stays unchanged. If the path is a
        symbolic link, only the owner of the link itself is changed.
        """
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def traverse_bit(self, folder: os.stat_result) -> int:
        """Returns the permission bit (x) that this user needs to pass through a folder.

        `folder` is the result of `os.stat` for the folder. The result is the bit of the owner if
        this user owns the folder, the bit of the group if the user's group owns it, and otherwise
        the bit of all other users.
        """
        if folder.st_uid == self.uid:
            return stat.S_IXUSR
        return stat.S_IXGRP if folder.st_gid == self.gid else stat.S_IXOTH


def account_for(data: Path) -> Account:
    """Selects the user that runs PostgreSQL on `data`, the folder `postgres/` in the data folder.

    If the current user is an ordinary user, this user also runs PostgreSQL. If the current user is
    root, the owner of `data` runs PostgreSQL. If `data` is missing or belongs to root, the system
    user `foldlog` runs PostgreSQL.

    The owner of `data` has priority over `foldlog` for two reasons: root may work on the folder of
    an ordinary user, and the user `foldlog` may have another user id in another container.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_other=False)
    if data.exists() and (owner := data.lstat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_other=True)
    user = system_user()
    return Account(user.pw_uid, user.pw_gid, is_other=True)


def system_user() -> pwd.struct_passwd:
    """Returns the system user `foldlog`, and creates it if it is missing.

    If the creation fails, the function logs a warning and returns the user `nobody`. Raises
    `DataFolderUnusable` if the user `nobody` is missing too.
    """
    for attempt in range(USERADD_ATTEMPTS_MAX):
        try:
            with _one_at_a_time():
                with suppress(KeyError):
                    return pwd.getpwnam(SYSTEM_USER)
                why = _useradd()
        except OSError as exc:
            why = str(exc)
            break
        time.sleep(0.1 * attempt)
    log.warning(
        "could not make a system user: PostgreSQL's files will belong to a user that "
        "other services may share",
        user=SYSTEM_USER_FALLBACK,
        why=why,
    )
    try:
        return pwd.getpwnam(SYSTEM_USER_FALLBACK)
    except KeyError:
        raise DataFolderUnusable(
            f"PostgreSQL does not run as root, and user {SYSTEM_USER} could not be made: {why}"
        ) from None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Holds a lock among all processes of Foldlog on this machine.

    useradd looks for the name before it locks the password file. A second useradd that looks in
    this moment replaces the new user by one with another user id.
    """
    folder = os.open(ACCOUNTS_FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _useradd() -> str:
    """Runs the command `useradd` to create the system user `foldlog`.

    Returns the error message of the command, or an empty text if it succeeded.
    """
    shell = "/usr/sbin/nologin"
    command = ["useradd", "--system", "--no-create-home", "--shell", shell, SYSTEM_USER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        log.info("made a system user for PostgreSQL", user=SYSTEM_USER)
        return ""
    return done.stderr.strip()


def allow_traversal(account: Account, paths: Iterable[Path]) -> None:
    """Lets PostgreSQL's user pass through every folder above these paths.

    If a folder lacks the needed permission bit (x), the function adds it and logs a warning. The
    bit allows access to files in the folder, but hides the list of its files. If PostgreSQL's user
    is the current user, all folders are left unchanged.
    """
    if not account.is_other:
        return
    for path in paths:
        for folder in reversed(path.parents):
            found = folder.stat()
            bit = account.traverse_bit(found)
            if not found.st_mode & bit:
                folder.chmod(stat.S_IMODE(found.st_mode) | bit)
                log.warning(
                    "let PostgreSQL's user traverse a folder",
                    folder=str(folder),
                    mode=oct(stat.S_IMODE(found.st_mode) | bit),
                )


def own_tree(account: Account, top: Path) -> None:
    """Makes PostgreSQL's user the owner of a folder and of all files in it.

    This is needed if root has restored a backup, because the restored files belong to root.
    """
    log.warning("giving the data to PostgreSQL's user", folder=str(top), uid=account.uid)
    for folder, _, names in os.walk(top):
        account.own(Path(folder))
        for name in names:
            account.own(Path(folder, name))
