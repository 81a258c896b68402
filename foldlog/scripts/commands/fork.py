"""Implements `foldlog fork`, which gives a log a new id.

An operator needs this command when signed events are lost, for example after restoring an older
backup.
"""

from __future__ import annotations

import click

from foldlog.infrastructure.postgres.fork import fork_log
from foldlog.scripts.console import YES, err, report_errors, with_database
from foldlog.scripts.services import open_services


@click.command("fork")
@click.argument("space")
@YES
@with_database
@report_errors
def fork_command(space: str, yes: bool, data: str | None, database_url: str | None) -> None:
    """Declare a fork: give the log of SPACE a new id.

    Use this command after restoring an older backup, if the signer stops with log-shrunk or
    log-forked. The new id also changes the origin in checkpoints, so auditors see a new log
    from now on. Events, devices and records stay. The file with the last checkpoint of the old
    log also stays, in the folder `checkpoints`. Prints the new id.
    """
    if not yes:
        click.confirm(f"Auditors of {space} must start over. Declare the fork?", abort=True)
    with open_services(data, database_url) as parts:
        click.echo(fork_log(parts.datastore, space))
    err.print("tell the auditors and witnesses that keep checkpoints of the old log")
