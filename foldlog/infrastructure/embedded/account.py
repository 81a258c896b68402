"""Whom PostgreSQL runs as. It refuses to be root, so root lends it a user of its own."""

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
#: useradd fails while another one has the password file locked
USERADD_ATTEMPTS_MAX = 10

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Account:
    """The user that PostgreSQL's processes run as, and whether that is another one than ours."""

    uid: int
    gid: int
    is_other: bool

    def process_options(self) -> dict[str, Any]:
        """What every process started for PostgreSQL is given.

        Nothing of our environment goes along: it may hold the admin's token, and PG* variables
        that would change what is started. `cwd` is a place that every user can be in.
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
        """Gives a file or folder to this user; a link is never followed."""
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def traverse_bit(self, folder: os.stat_result) -> int:
        """The one permission bit that lets this user pass through the folder."""
        if folder.st_uid == self.uid:
            return stat.S_IXUSR
        return stat.S_IXGRP if folder.st_gid == self.gid else stat.S_IXOTH


def account_for(data: Path) -> Account:
    """Ourselves; if we are root, whoever the data belongs to, else the system user.

    To go by the data's owner lets root look into the folder of an ordinary user, and keeps a
    folder usable whose system user has another number, or no name, in today's container.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_other=False)
    if data.exists() and (owner := data.lstat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, is_other=True)
    user = system_user()
    return Account(user.pw_uid, user.pw_gid, is_other=True)


def system_user() -> pwd.struct_passwd:
    """The user `foldlog`, made if need be."""
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
        "could not make a system user: PostgreSQL's files will belong to one that "
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
    """Returns why it failed, or nothing."""
    shell = "/usr/sbin/nologin"
    command = ["useradd", "--system", "--no-create-home", "--shell", shell, SYSTEM_USER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        log.info("made a system user for PostgreSQL", user=SYSTEM_USER)
        return ""
    return done.stderr.strip()


def let_through(account: Account, paths: Iterable[Path]) -> None:
    """Lets the user pass through every folder above the paths; it may not list them.

    Only root needs it, and only what is missing is changed: one bit, said in the log.
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
                    "let PostgreSQL's user pass through a folder",
                    folder=str(folder),
                    mode=oct(stat.S_IMODE(found.st_mode) | bit),
                )


def own_tree(account: Account, top: Path) -> None:
    """Gives a whole tree to the user: a backup that root copied back belongs to root."""
    log.warning("giving the data to PostgreSQL's user", folder=str(top), uid=account.uid)
    for folder, _, names in os.walk(top):
        account.own(Path(folder))
        for name in names:
            account.own(Path(folder, name))
