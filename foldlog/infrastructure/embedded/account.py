"""The system user of PostgreSQL's processes: PostgreSQL refuses to run as root."""

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
    """The user that PostgreSQL's processes run as; `is_other` if it differs from our own."""

    uid: int
    gid: int
    is_other: bool

    def process_options(self) -> dict[str, Any]:
        """Returns the options of `subprocess` for every process of PostgreSQL.

        The process gets a fresh environment, because ours may contain the admin token and PG*
        variables. Every user can enter its working folder `/`.
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
        """Makes this user the owner of a file or folder; a symbolic link is changed itself."""
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def traverse_bit(self, folder: os.stat_result) -> int:
        """Returns the permission bit that lets this user traverse the folder."""
        if folder.st_uid == self.uid:
            return stat.S_IXUSR
        return stat.S_IXGRP if folder.st_gid == self.gid else stat.S_IXOTH


def account_for(data: Path) -> Account:
    """Returns our own user, or, if we are root, the owner of the data or the system user.

    The data's owner comes first, because root may work on an ordinary user's folder, and because
    the system user of an older container may have another number or no name today.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_other=False)
    if data.exists() and (owner := data.lstat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_other=True)
    user = system_user()
    return Account(user.pw_uid, user.pw_gid, is_other=True)


def system_user() -> pwd.struct_passwd:
    """Returns the user `foldlog`, and makes it if needed; otherwise returns `nobody`."""
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
    """Makes the user; returns an error message, or an empty text on success."""
    shell = "/usr/sbin/nologin"
    command = ["useradd", "--system", "--no-create-home", "--shell", shell, SYSTEM_USER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        log.info("made a system user for PostgreSQL", user=SYSTEM_USER)
        return ""
    return done.stderr.strip()


def allow_traversal(account: Account, paths: Iterable[Path]) -> None:
    """Lets the user traverse every folder above the paths, but not list it.

    It works only for root. It adds missing permission bits and logs each one.
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
    """Makes the user the owner of a folder tree, because root may have restored a backup."""
    log.warning("giving the data to PostgreSQL's user", folder=str(top), uid=account.uid)
    for folder, _, names in os.walk(top):
        account.own(Path(folder))
        for name in names:
            account.own(Path(folder, name))
