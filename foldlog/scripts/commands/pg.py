"""`foldlog pg`: PostgreSQL's own programs, on the database that the service uses."""

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
from foldlog.infrastructure.wiring import database_as_it_is
from foldlog.scripts.console import quiet_logs, report_errors, with_database

#: part of a URL -> where libpq's programs look for it: an argument would show passwords to `ps`
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
@click.option("--superuser", is_flag=True, help="As the embedded server's superuser.")
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
    """Run a PROGRAM of PostgreSQL (pg_dump, pg_restore, pg_basebackup, psql ...) on the database.

    It is told where the database is, and who connects, by its environment. Options of this command
    come before PROGRAM, those of the program after it.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database_as_it_is(settings, superuser=superuser) as url:
        done = subprocess.run([_found(program), *args], env=_environment(url), check=False)
    sys.exit(done.returncode)


def _found(program: str) -> str:
    """The one that came by pip, which is of the embedded server's version; else the system's."""
    try:
        path = str(find_binaries())
    except PostgresNotInstalled:
        path = ""
    found = shutil.which(program, path=path) or shutil.which(program)
    if found is None or Path(program).name != program:
        raise OperatorError(f"there is no {program!r} among PostgreSQL's programs")
    return found


def _environment(url: str) -> Mapping[str, str]:
    parts = conninfo_to_dict(url)
    told = {VARIABLES[name]: str(value) for name, value in parts.items() if name in VARIABLES}
    ours = {name: value for name, value in os.environ.items() if name != DATABASE_URL}
    return {**ours, **told}
