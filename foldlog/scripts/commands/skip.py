"""Implements `foldlog skip`, which makes the projections of a space leave out an event that they
cannot process.
"""

from __future__ import annotations

import click

from foldlog.scripts.console import BY, REASON, YES, err, report_errors, spaced, with_database
from foldlog.scripts.services import open_services


@click.command("skip")
@click.argument("space")
@click.argument("seq", type=click.IntRange(min=1))
@REASON
@BY
@YES
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
    """Skip event SEQ, which cannot be applied to the master table of SPACE.

    The table is halted at this event, and `foldlog status` shows the seq. After the skip, the
    event stays in the log, but all tables leave out the changes of the event. A skip is final.
    """
    with open_services(data, database_url) as parts:
        if not yes:
            click.confirm(f"Skip seq {seq} of {space} forever?", abort=True, err=True)
        skipped = parts.store.skip(space, seq, reason=reason, by=by)
    err.print(f"skipped seq {spaced(seq)}; `event-skipped` is seq {spaced(skipped.by_seq)}")
