"""Implements `foldlog pg`, which runs PostgreSQL's own programs on the database of the service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from foldlog.domain.errors import OperatorError, StorageUnavailable
from foldlog.infrastructure.embedded.binaries import find_binaries
from foldlog.infrastructure.embedded.errors import PostgresNotInstalled
from foldlog.infrastructure.settings import DATABASE_URL, read_settings
from foldlog.infrastructure.wiring import unchecked_database
from foldlog.scripts.console import quiet_logs, report_errors, with_database

#: Part of a URL -> the environment variable of libpq. `ps` would show passwords in arguments.
VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


#: These programs must have the major version of the server.
OF_THE_SERVERS_VERSION = ("pg_dump", "pg_restore")
#: Folders of the programs of one major version: Debian, Red Hat, Homebrew on ARM and on Intel.
PLACES = (
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/local/opt/postgresql@{}/bin",
)
CONNECT_SECONDS_MAX = 10


@click.command("pg", context_settings={"ignore_unknown_options": True})
@with_database
@click.option("--superuser", is_flag=True, help="Connect as the embedded server's superuser.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@report_errors
def pg_command(
    program: str,
    args: tuple[str, ...],
    superuser: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Run PROGRAM of PostgreSQL on the database of the service.

    PROGRAM is pg_dump, pg_restore, pg_basebackup, psql or another one. This command sets
    environment variables that tell the program how to connect to the database. Put the options
    of this command before PROGRAM, and the options of the program after PROGRAM. The exit code
    is that of the program.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    creates = program == "pg_restore"
    with unchecked_database(settings, superuser=superuser, creates=creates) as url:
        path = _path_of(program)
        if settings.database_url is not None and program in OF_THE_SERVERS_VERSION:
            path = _of_version(program, _version_of_server(url))
        done = subprocess.run([path, *args], env=_environment(url), check=False)
    sys.exit(done.returncode)


def _path_of(program: str) -> str:
    """Returns the path of a PostgreSQL program.

    Searches the pip package of PostgreSQL first, because its programs have the same version as
    the embedded server. Then searches the folders of PATH. Raises `OperatorError` if the
    program is missing.
    """
    try:
        path = str(find_binaries())
    except PostgresNotInstalled:
        path = ""
    found = shutil.which(program, path=path) or shutil.which(program)
    if found is None or Path(program).name != program:
        raise OperatorError(f"{program!r} is not a PostgreSQL program, or it is not installed")
    return found


def _version_of_server(url: str) -> int:
    """Returns the major version of the server. Raises `StorageUnavailable` if it cannot answer."""
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS_MAX) as conn:
            return conn.info.server_version // 10_000
    except psycopg.OperationalError as exc:
        raise StorageUnavailable(f"cannot use the database: {exc}") from exc


def _of_version(program: str, major: int, folders: Sequence[str] | None = None) -> str:
    """Returns the path of the program whose major version is `major`.

    `pg_dump` refuses a newer server, and `pg_restore` sends an older server settings that it does
    not know. `folders` are searched in this order; by default the pip package, the folders of
    PATH, and the folders in which systems install several versions. Raises `OperatorError` if
    every program that was found has another version.
    """
    found: dict[str, int] = {}
    for folder in _folders(major) if folders is None else folders:
        path = shutil.which(program, path=folder)
        if path is not None and path not in found:
            found[path] = _version_of(path)
            if found[path] == major:
                return path
    others = ", ".join(f"{path} is of version {version}" for path, version in found.items())
    raise OperatorError(
        f"the server has PostgreSQL {major}, so {program} {major} is needed: install the client "
        f"programs of PostgreSQL {major} and put their folder into PATH ({others or 'none found'})"
    )


def _folders(major: int) -> list[str]:
    try:
        embedded = [str(find_binaries())]
    except PostgresNotInstalled:
        embedded = []
    on_path = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    return [*embedded, *on_path, *(place.format(major) for place in PLACES)]


def _version_of(path: str) -> int:
    """Returns the major version that the program prints, or 0 if it prints none."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    version = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(version[1]) if version else 0


def _environment(url: str) -> Mapping[str, str]:
    parts = conninfo_to_dict(url)
    connection = {VARIABLES[name]: str(parts[name]) for name in VARIABLES if name in parts}
    inherited = {name: value for name, value in os.environ.items() if name != DATABASE_URL}
    return {**inherited, **connection}
