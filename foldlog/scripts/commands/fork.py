"""`foldlog fork`: an admin declares that a log is not the one it was any more."""

from __future__ import annotations

import click

from foldlog.domain.errors import UnknownSpace
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import err, quiet_logs, report_errors, with_database

NEW_LOG = """
UPDATE spaces
   SET log = gen_random_uuid()
 WHERE space = %(space)s
RETURNING log::text
"""


@click.command("fork")
@click.argument("space")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_database
@report_errors
def fork_command(space: str, yes: bool, data: str | None, database_url: str | None) -> None:
    """Declare that the log of SPACE has forked: it gets a new id, and so a new origin.

    The way out when a backup had to be restored and the signer refuses to go on (log-shrunk,
    log-forked). Events, devices and records stay. Who audits sees another log from now on; the last
    checkpoint of the old one stays on the disk.
    """
    if not yes:
        click.confirm(f"Auditors of {space} will have to begin anew. Declare the fork?", abort=True)
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with (
        database(settings) as db,
        services(db.url, settings) as parts,
        parts.datastore.committed() as cursor,
    ):
        found = cursor.execute(NEW_LOG, {"space": space}).fetchone()
    if found is None:
        raise UnknownSpace(space)
    click.echo(found[0])
    err.print("tell those who keep checkpoints of it")
