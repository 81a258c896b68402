"""Implements `foldlog pg`, which runs PostgreSQL's own programs on the database of the service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from psycopg.conninfo import conninfo_to_dict

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.embedded.binaries import find_binaries
from foldlog.infrastructure.embedded.errors import PostgresNotInstalled
from foldlog.infrastructure.settings import DATABASE_URL, read_settings
from foldlog.infrastructure.wiring import unchecked_database
from foldlog.scripts.console import quiet_logs, report_errors, with_database
from foldlog.scripts.services import naming_the_database

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
    opened = unchecked_database(settings, superuser=superuser, creates=program == "pg_restore")
    with naming_the_database(settings), opened as url:
        done = subprocess.run([_path_of(program), *args], env=_environment(url), check=False)
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


def _environment(url: str) -> Mapping[str, str]:
    parts = conninfo_to_dict(url)
    connection = {VARIABLES[name]: str(parts[name]) for name in VARIABLES if name in parts}
    inherited = {name: value for name, value in os.environ.items() if name != DATABASE_URL}
    return {**inherited, **connection}
