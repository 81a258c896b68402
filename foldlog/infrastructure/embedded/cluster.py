"""How the data comes to be: initdb, settings, who may connect, the role and its database."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import psycopg
import structlog
from psycopg import sql

from .account import Account
from .binaries import POSTGRES_MAJOR, has_lz4
from .errors import DataFolderUnusable, PostgresFailed, WrongPostgresVersion
from .folder import PORT, Layout, sync_folder, write_new

SUPERUSER = "postgres"
ROLE = "foldlog"  #: owns the tables, and migrates them
SERVICE_ROLE = "foldlog_service"  #: what all else works as; what it may do: postgres/grants.py
DATABASE = "foldlog"

SHARED_BUFFERS_MB_MAX = 2_048
SHARED_BUFFERS_MB_MIN = 32

log = structlog.get_logger(__name__)

HBA = """\
# Written by Foldlog: a password for everybody, the machine's own root included. There is no TCP.
# `replication` is for pg_basebackup, see docs/how-to/back-up.md.
local all all scram-sha-256
local replication postgres scram-sha-256
"""

POSTGRESQL_CONF = """\
# Written once by Foldlog; yours from then on. What stands below wins over what is included.
include 'initdb.conf'        # what initdb found out about this machine
include '../foldlog.conf'    # Foldlog's defaults, rewritten at every start
"""


def default_settings(binaries: Path) -> dict[str, str]:
    """What the user may change in `postgresql.conf`. Durability is PostgreSQL's default: all on."""
    memory_mb = psutil.virtual_memory().total // 2**20
    buffers_mb = max(SHARED_BUFFERS_MB_MIN, min(SHARED_BUFFERS_MB_MAX, memory_mb // 8))
    return {
        "shared_buffers": f"{buffers_mb}MB",
        "max_connections": "100",
        "max_wal_size": "2GB",
        "wal_compression": "lz4" if has_lz4(binaries) else "off",
        "jit": "off",  # short statements: compiling them takes longer than running them
        "random_page_cost": "1.1",  # disks without moving parts
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_error_verbosity": "terse",  # details quote rows, and a log cannot be erased from
    }


def fixed_settings(sockets: Path) -> dict[str, str]:
    """What the rest of this package relies on; given as arguments, which win over every file."""
    return {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "log_destination": "stderr",
        "logging_collector": "off",
    }


def as_arguments(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def write_defaults(layout: Layout, binaries: Path) -> None:
    """Outside of the data, so that root never writes into a folder that another user owns."""
    lines = [
        f"{name} = '{value.replace(chr(39), chr(39) * 2)}'"
        for name, value in default_settings(binaries).items()
    ]
    head = "# Written by Foldlog at every start. Your own settings go to postgres/postgresql.conf."
    write_new(layout.defaults, "\n".join([head, *lines, ""]), 0o644)


def exists(layout: Layout) -> bool:
    """Whether there is a cluster to start. What we cannot start is never overwritten."""
    version = layout.data / "PG_VERSION"
    if not layout.data.exists() or not any(layout.data.iterdir()):
        return False
    if not version.is_file():
        raise DataFolderUnusable(f"{layout.data} is not empty and holds no PostgreSQL data")
    found = version.read_text().strip()
    if found != str(POSTGRES_MAJOR):
        raise WrongPostgresVersion(
            f"{layout.data} was made by PostgreSQL {found}, this is {POSTGRES_MAJOR}: export with "
            f"the release of Foldlog that made it, or upgrade a copy with pg_upgrade"
        )
    return True


def create(
    layout: Layout, binaries: Path, account: Account, password: str, *, durable: bool = True
) -> None:
    """Makes the cluster aside and then gives it its name, so that it is there whole or not at all.

    A kill in the middle leaves an unfinished folder, which the next start throws away.
    """
    log.info("making a new database", folder=str(layout.data))
    new = layout.unfinished
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    account.own(new)
    _initdb(layout, binaries, account, password, durable=durable)
    (new / "postgresql.conf").rename(new / "initdb.conf")
    write_new(new / "postgresql.conf", POSTGRESQL_CONF, 0o600)
    write_new(new / "pg_hba.conf", HBA, 0o600)
    new.rename(layout.data)
    sync_folder(layout.folder)


def _initdb(
    layout: Layout, binaries: Path, account: Account, password: str, *, durable: bool
) -> None:
    password_file = layout.folder / "initdb.password"
    command: list[str | Path] = [
        binaries / "initdb",
        f"--pgdata={layout.unfinished}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
        *([] if durable else ["--no-sync"]),
    ]
    # Working in the folder that it makes is what it is known by, should we be killed meanwhile.
    options = account.process_options() | {"cwd": layout.unfinished}
    write_new(password_file, password + "\n", 0o600, account)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    finally:
        password_file.unlink(missing_ok=True)
    if done.returncode:
        raise PostgresFailed(f"initdb failed: {done.stderr.strip()}")


def set_superuser_password(layout: Layout, binaries: Path, account: Account, password: str) -> None:
    """Gives the superuser a new password where the old one is lost, as after a restored backup.

    The secrets lie outside of the data, so the two can part. PostgreSQL's single-user mode asks
    for none; whoever may run it owns the files anyway.
    """
    log.warning("the superuser's password is not in secrets/: setting a new one")
    done = subprocess.run(
        [binaries / "postgres", "--single", "-D", layout.data, "postgres"],
        input=f"ALTER ROLE {SUPERUSER} PASSWORD '{password}'\n",
        capture_output=True,
        text=True,
        check=False,
        **account.process_options(),
    )
    if done.returncode or "ERROR" in done.stderr:
        said = done.stderr.replace(password, "...").strip()  # it may quote the statement
        raise PostgresFailed(f"could not set the superuser's password: {said}")


def ensure_roles_and_database(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """Makes the roles and the database that Foldlog works with, or what is missing of them.

    It runs at every start: a crash between two of its steps heals, and a lost password is new.
    """
    owner, database = sql.Identifier(ROLE), sql.Identifier(DATABASE)
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        for role, password in passwords.items():
            _ensure_role(connection, role, password)
        if not _finds(connection, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, owner))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, owner))


def _ensure_role(
    connection: psycopg.Connection[tuple[object, ...]], role: str, password: str
) -> None:
    name = sql.Identifier(role)
    if not _finds(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", role):
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
    # The server is told a hash, so that no statement in any log holds the password.
    hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    connection.execute(
        sql.SQL(
            "ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {}"
        ).format(name, sql.Literal(hashed.decode()))
    )


def _finds(connection: psycopg.Connection[tuple[object, ...]], query: str, name: str) -> bool:
    return connection.execute(query.encode(), [name]).fetchone() is not None
