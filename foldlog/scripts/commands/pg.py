"""`foldlog pg`: runs PostgreSQL's own programs on the database of the service."""

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
    """Run a PROGRAM of PostgreSQL on the service's database.

    Programs are pg_dump, pg_restore, pg_basebackup, psql and others. The program gets the
    connection from environment variables. Put this command's options before PROGRAM and the
    program's options after it. The exit code is the program's.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with unchecked_database(settings, superuser=superuser) as url:
        done = subprocess.run([_path_of(program), *args], env=_environment(url), check=False)
    sys.exit(done.returncode)


def _path_of(program: str) -> str:
    """Prefers the program of the pip package, because it has the embedded server's version."""
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
