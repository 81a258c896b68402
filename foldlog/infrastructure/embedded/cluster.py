"""Creates the database cluster (the data files) of the embedded server.

It runs PostgreSQL's `initdb`, writes the configuration files, and creates the roles and the
database.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import psycopg
import structlog
from psycopg import sql

from foldlog.infrastructure.files import sync_folder, write_new

from .account import Account
from .binaries import POSTGRES_MAJOR, has_lz4
from .errors import DataFolderUnusable, PostgresFailed, WrongPostgresVersion
from .folder import PORT, Layout

SUPERUSER = "postgres"
ROLE = "foldlog"  #: owns and migrates the tables
SERVICE_ROLE = "foldlog_service"  #: runs the service; postgres/schema/grants.py lists its rights
DATABASE = "foldlog"

SHARED_BUFFERS_MB_MAX = 2_048
SHARED_BUFFERS_MB_MIN = 32

log = structlog.get_logger(__name__)

HBA = """\
# Written by Foldlog: every connection needs a password, also root's. TCP is off.
# `replication` is for pg_basebackup, see docs/how-to/back-up.md.
local all all scram-sha-256
local replication postgres scram-sha-256
"""

POSTGRESQL_CONF = """\
# Written once by Foldlog; it is yours to edit. Settings below override the included files.
include 'initdb.conf'        # initdb's settings for this machine
include '../foldlog.conf'    # Foldlog's defaults, rewritten at every start
"""


def default_settings(binaries: Path) -> dict[str, str]:
    """Returns Foldlog's defaults for PostgreSQL's settings, as a dict from name to value.

    The size of PostgreSQL's cache depends on this machine's memory. The operator may override all
    defaults in `postgresql.conf`. The settings that protect committed data in a crash stay on.
    """
    memory_mb = psutil.virtual_memory().total // 2**20
    buffers_mb = max(SHARED_BUFFERS_MB_MIN, min(SHARED_BUFFERS_MB_MAX, memory_mb // 8))
    return {
        "shared_buffers": f"{buffers_mb}MB",
        "max_connections": "100",
        "max_wal_size": "2GB",
        "wal_compression": "lz4" if has_lz4(binaries) else "off",
        "jit": "off",  # our statements are short: compiling takes longer than running them
        "random_page_cost": "1.1",  # for SSDs
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_error_verbosity": "terse",  # details quote rows, and log files are outside of erasures
    }


def fixed_settings(sockets: Path) -> dict[str, str]:
    """Returns the settings that the embedded server needs to work, as a dict from name to value.

    They are passed to PostgreSQL on its command line, so they override the configuration files.
    """
    return {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "log_destination": "stderr",
        "logging_collector": "off",
    }


def as_arguments(settings: Mapping[str, str]) -> list[str]:
    """Converts settings to a list of arguments for `postgres`, such as `["-c", "name=value"]`."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def write_defaults(layout: Layout, binaries: Path) -> None:
    """Writes Foldlog's defaults for PostgreSQL's settings to the file `foldlog.conf`.

    This file is outside of the folder `postgres/`. That folder may belong to another user, and root
    must avoid writing into folders of other users.
    """
    lines = [
        f"{name} = '{value.replace(chr(39), chr(39) * 2)}'"
        for name, value in default_settings(binaries).items()
    ]
    head = (
        "# Written by Foldlog at every start. Put your own settings into postgres/postgresql.conf."
    )
    write_new(layout.defaults, "\n".join([head, *lines, ""]), 0o644)


def has_cluster(layout: Layout) -> bool:
    """Tells whether the folder `postgres/` contains a database cluster of the right version.

    Returns `False` if the folder is empty or missing. Raises `DataFolderUnusable` if the folder
    contains files, but these files belong to another program. Raises `WrongPostgresVersion` if
    another major version of PostgreSQL has created the cluster.
    """
    version = layout.data / "PG_VERSION"
    if not layout.data.exists() or not any(layout.data.iterdir()):
        return False
    if not version.is_file():
        raise DataFolderUnusable(
            f"{layout.data} has files, but no PostgreSQL data: choose another folder"
        )
    found = version.read_text().strip()
    if found != str(POSTGRES_MAJOR):
        raise WrongPostgresVersion(
            f"{layout.data} was made by PostgreSQL {found}, this is {POSTGRES_MAJOR}: export with "
            f"the release of Foldlog that made it, or upgrade a copy with pg_upgrade"
        )
    return True


def create_cluster(
    layout: Layout, binaries: Path, account: Account, password: str, *, durable: bool = True
) -> None:
    """Creates a database cluster in a temporary folder, and renames this folder at the end.

    The rename makes sure that a cluster in the data folder is always complete. If the process
    crashes before the rename, the next start deletes the temporary folder and begins again.
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
    """Runs PostgreSQL's `initdb`, which creates the cluster in the temporary folder.

    `password` is the superuser's password. If `durable` is true, the files are flushed to the disk.
    Raises `PostgresFailed` if `initdb` fails.
    """
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
    # After a crash, the next start finds a running initdb by its working folder.
    options = account.process_options() | {"cwd": layout.unfinished}
    write_new(password_file, password + "\n", 0o600, set_owner=account.own)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    finally:
        password_file.unlink(missing_ok=True)
    if done.returncode:
        raise PostgresFailed(f"initdb failed: {done.stderr.strip()}")


def set_superuser_password(layout: Layout, binaries: Path, account: Account, password: str) -> None:
    """Sets a new password for PostgreSQL's superuser, because the old password is lost.

    The password is lost if a backup was restored, because the password files are outside of the
    data and so missing in the backup. The function runs PostgreSQL in single-user mode, which needs
    no password, but works only for the owner of the data. Raises `PostgresFailed` if this fails.
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
        output = done.stderr.replace(password, "...").strip()  # it may quote the statement
        raise PostgresFailed(f"could not set the superuser's password: {output}")


def ensure_roles_and_database(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """Creates the roles and the database if they are missing, and sets the roles' passwords.

    `passwords` contains the password of each role. The function is called at every start of the
    server. Therefore a start also repairs an interrupted first start and sets lost passwords anew.
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
    """Creates a role if it is missing, and sets its password and its attributes, such as LOGIN."""
    name = sql.Identifier(role)
    if not _finds(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", role):
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
    # The statement has only a hash, because the server may log statements.
    hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    connection.execute(
        sql.SQL(
            "ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {}"
        ).format(name, sql.Literal(hashed.decode()))
    )


def _finds(connection: psycopg.Connection[tuple[object, ...]], query: str, name: str) -> bool:
    """Runs a query with the parameter `name`, and tells whether the query returns a row."""
    return connection.execute(query.encode(), [name]).fetchone() is not None
