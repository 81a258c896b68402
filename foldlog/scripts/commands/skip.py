"""`foldlog skip`: stepping over an event at which the master table of a space stands still."""

from __future__ import annotations

import click

from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import BY, err, quiet_logs, report_errors, spaced, with_database


@click.command("skip")
@click.argument("space")
@click.argument("seq", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why. It stays in the log for ever: name no person.")
@BY
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_database
@report_errors
def skip_command(
    space: str,
    seq: int,
    reason: str,
    by: str | None,
    yes: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Step over event SEQ of SPACE, at which its master table stands still (`foldlog status`).

    The event stays in the log; what it says is folded nowhere any more, and there is no way back.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        if not yes:
            click.confirm(f"Step over seq {seq} of {space}, for ever?", abort=True, err=True)
        skipped = parts.store.skip(space, seq, reason=reason, by=by)
    err.print(f"stepped over seq {spaced(seq)}; `event-skipped` is seq {spaced(skipped.by_seq)}")
