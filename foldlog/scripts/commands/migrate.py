"""`foldlog migrate`: brings a database to this version's schema."""

from __future__ import annotations

import click

from foldlog.infrastructure.postgres.schema.grants import grant
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database
from foldlog.scripts.console import quiet_logs, report_errors, with_database


@click.command("migrate")
@click.option(
    "--grant-to",
    metavar="ROLE",
    help="Give this role of the database what the service needs, and no more; the service then "
    "connects as it. Say it again at each upgrade.",
)
@with_database
@report_errors
def migrate_command(grant_to: str | None, data: str | None, database_url: str | None) -> None:
    """Bring the database to this version's schema; `serve` does it by itself.

    An older service may go on beside it: migrations only add, until a release says otherwise.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings, migrates=True) as db:
        for name in db.migrated:
            click.echo(f"applied {name}")
        if not db.migrated:
            click.echo("nothing to do")
        if grant_to is not None:
            grant(db.owner_url, grant_to)
            click.echo(f"granted to {grant_to} what the service needs")
