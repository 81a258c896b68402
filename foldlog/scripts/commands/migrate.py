"""Implements `foldlog migrate`, which upgrades a database to the schema of this version."""

from __future__ import annotations

import click

from foldlog.infrastructure.postgres.schema.grants import grant
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database
from foldlog.scripts.console import (
    quiet_logs,
    report_errors,
    say,
    with_database,
)


@click.command("migrate")
@click.option(
    "--grant-to",
    metavar="ROLE",
    help="Grant this database role exactly the rights that the service needs; the service then "
    "connects as this role. Repeat it at each upgrade.",
)
@with_database
@report_errors
def migrate_command(grant_to: str | None, data: str | None, database_url: str | None) -> None:
    """Upgrade the database to the schema of this version.

    `foldlog serve` and `foldlog import` also do this upgrade when they start. A service of the
    older version can keep running, because migrations only add tables and columns unless the
    release notes say otherwise.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings, migrates=True) as db:
        for name in db.migrated:
            say(f"applied {name}")
        if not db.migrated:
            say("nothing to do")
        if grant_to is not None:
            grant(db.owner_url, grant_to)
            say(f"granted to {grant_to} what the service needs")
