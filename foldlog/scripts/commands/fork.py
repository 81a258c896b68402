"""Implements `foldlog fork`, which gives a log a new id.

An operator needs this command when signed events are lost, for example after restoring an older
backup.
"""

from __future__ import annotations

import click

from foldlog.infrastructure.postgres.fork import fork_log
from foldlog.infrastructure.postgres.projections import VERSIONS
from foldlog.infrastructure.wiring import rebuilder
from foldlog.scripts.console import (
    YES,
    err,
    report_errors,
    say,
    with_database,
)
from foldlog.scripts.services import open_services


@click.command("fork")
@click.argument("space")
@YES
@with_database
@report_errors
def fork_command(space: str, yes: bool, data: str | None, database_url: str | None) -> None:
    """Declare a fork: give the log of SPACE a new id.

    Use this command after restoring an older backup, if the signer stops with log-shrunk or
    log-forked, or if events are lost for ever (log-incomplete). The new id also changes the
    origin in checkpoints, so auditors see a new log from now on. Events, devices and records
    stay. An event of the kind event-lost replaces each missing event, and the records are then
    rebuilt. The file with the last checkpoint of the old log also stays, in the folder
    `checkpoints`. Prints the new id.
    """
    if not yes:
        click.confirm(f"Auditors of {space} must start over. Declare the fork?", abort=True)
    with open_services(data, database_url) as parts:
        forked = fork_log(parts.datastore, space)
        if forked.needs_rebuild:
            err.print(f"{forked.lost} missing events replaced; the log ends at seq {forked.head}")
            for projection in VERSIONS:
                with rebuilder(parts.datastore.url, projection, parts.settings.limits) as to:
                    to.rebuild(space, fresh=True)
        parts.store.alarms.end(space)
        say(forked.log)
    err.print("tell the auditors and witnesses that keep checkpoints of the old log")
