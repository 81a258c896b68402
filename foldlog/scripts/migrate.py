"""`foldlog migrate`: brings a database to this version's schema."""

from __future__ import annotations

import click

from ..infrastructure.settings import read_settings
from ..infrastructure.wiring import database
from .console import quiet_logs, told, with_database


@click.command("migrate")
@with_database
@told
def migrate_command(data: str | None, database_url: str | None) -> None:
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
