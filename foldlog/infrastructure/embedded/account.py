"""Selects the operating system's user for PostgreSQL's processes.

PostgreSQL refuses to run as root, so if Foldlog runs as root, PostgreSQL runs as another user.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from .errors import DataFolderUnusable

SYSTEM_USER = "foldlog"
SYSTEM_USER_FALLBACK = "nobody"
#: useradd fails while another useradd locks the password file.
USERADD_ATTEMPTS_MAX = 10

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Account:
    """The operating system's user that runs PostgreSQL's processes.

    `is_other` is true if this user differs from the user of the current process.
    """

    uid: int
    gid: int
    is_other: bool

    def process_options(self) -> dict[str, Any]:
        """Returns the arguments of `subprocess` with which each process of PostgreSQL is started.

        The process gets a new environment, because ours may contain the admin token and PG*
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
        """Makes this user the owner of a file or folder.

        If the path is a symbolic link, the owner of the link itself changes.
        """
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def traverse_bit(self, folder: os.stat_result) -> int:
        """Returns the permission bit that this user needs to pass through the folder.

        `folder` is the result of `stat` for the folder.
        """
        if folder.st_uid == self.uid:
            return stat.S_IXUSR
        return stat.S_IXGRP if folder.st_gid == self.gid else stat.S_IXOTH


def account_for(data: Path) -> Account:
    """Returns the user that runs PostgreSQL on this data folder.

    It is the current user. If the current user is root, it is the owner of the existing data, or
    else the system user `foldlog`. The owner of the data has priority because root may work on the
    folder of an ordinary user, and because the system user of an older container may have had
    another number.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_other=False)
    if data.exists() and (owner := data.lstat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_other=True)
    user = system_user()
    return Account(user.pw_uid, user.pw_gid, is_other=True)


def system_user() -> pwd.struct_passwd:
    """Returns the system user `foldlog`, and creates this user if it is missing.

    If the creation fails, it logs a warning and returns the user `nobody`. Raises
    `DataFolderUnusable` if `nobody` is missing too.
    """
    for attempt in range(USERADD_ATTEMPTS_MAX):
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            time.sleep(0.1 * attempt)
        try:
            why = _useradd()
        except OSError as exc:
            why = str(exc)
            break
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


def _useradd() -> str:
    """Runs `useradd` to create the system user.

    Returns an error message, or an empty text if the command succeeded.
    """
    shell = "/usr/sbin/nologin"
    command = ["useradd", "--system", "--no-create-home", "--shell", shell, SYSTEM_USER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        log.info("made a system user for PostgreSQL", user=SYSTEM_USER)
        return ""
    return done.stderr.strip()


def allow_traversal(account: Account, paths: Iterable[Path]) -> None:
    """Lets the account traverse every folder above the paths. The account still cannot list them.

    It adds the missing permission bits and logs each change. It changes folders only if the account
    differs from the current user, which means that the current user is root.
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
    """Makes the account the owner of a folder and of all files in it.

    This is needed after root has restored a backup, because the files then belong to root.
    """
    log.warning("giving the data to PostgreSQL's user", folder=str(top), uid=account.uid)
    for folder, _, names in os.walk(top):
        account.own(Path(folder))
        for name in names:
            account.own(Path(folder, name))
