"""`foldlog rebuild`: the master table anew from the log, beside the live one."""

from __future__ import annotations

import sys
import time

import click
from rich.markup import escape

from ..infrastructure.postgres.datastore import Datastore
from ..infrastructure.postgres.master import MasterProjection
from ..infrastructure.postgres.projector import Stopped
from ..infrastructure.postgres.rebuild import RebuildDiffers, Rebuilder
from ..infrastructure.postgres.status import spaces as all_spaces
from ..infrastructure.settings import read_settings
from ..infrastructure.wiring import database, services
from .console import EXIT_NO, err, fail, progress, quiet_logs, spaced, told, with_database


@click.command("rebuild")
@click.argument("spaces", nargs=-1, metavar="[SPACE]...")
@click.option("--all", "wants_all", is_flag=True, help="Rebuild every space.")
@click.option(
    "--verify",
    is_flag=True,
    help="Compare with the live table before the swap; if they differ, print the first "
    "difference, keep the live table, and exit with 1.",
)
@click.option("--fresh", is_flag=True, help="Throw away what an interrupted rebuild left.")
@with_database
@told
def rebuild_command(
    spaces: tuple[str, ...],
    wants_all: bool,
    verify: bool,
    fresh: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Rebuild the projections of each SPACE from its log, and swap them in.

    Clients go on reading meanwhile. A rebuild that is interrupted, however hard, goes on where it
    stopped when it is started again.
    """
    if bool(spaces) == wants_all:
        raise click.UsageError("name the spaces to rebuild, or say --all")
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    differing = []
    with database(settings) as db, services(db.url, settings) as parts:
        for space in spaces or all_spaces(parts.datastore):
            try:
                _rebuild(parts.datastore, space, verify, fresh)
            except RebuildDiffers as exc:
                err.print(
                    f"[red]differs:[/red] {escape(str(exc))}", soft_wrap=True, highlight=False
                )
                differing.append(space)
            except Stopped as exc:
                fail(f"{space}: an event cannot be processed: {exc}")
    if differing:
        err.print(
            f"kept the live tables; `foldlog rebuild {' '.join(differing)}` without --verify "
            "swaps the rebuilt ones in"
        )
        sys.exit(EXIT_NO)


def _rebuild(datastore: Datastore, space: str, verify: bool, fresh: bool) -> None:
    started = time.monotonic()
    with progress(f"rebuilding {space}", None) as report:
        rebuilder = Rebuilder(
            datastore,
            MasterProjection(),
            report=lambda _, position, head: report(position, head),
        )
        rebuilt = rebuilder.rebuild(space, verify=verify, fresh=fresh)
    seconds = time.monotonic() - started
    compared = ", equal to the live table" if rebuilt.is_compared else ""
    resumed = f" (resumed at {spaced(rebuilt.resumed_at)})" if rebuilt.resumed_at else ""
    click.echo(
        f"{space}: {spaced(rebuilt.events)} events{resumed} in {seconds:.1f} s{compared}; "
        f"generation {rebuilt.generation} is live"
    )
