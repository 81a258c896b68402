"""Implements `foldlog rebuild`, which computes a projection again from the log and replaces the
live table with it.
"""

from __future__ import annotations

import os
import sys
from typing import IO

import click
from rich.markup import escape

from foldlog.infrastructure.postgres.projections import VERSIONS
from foldlog.infrastructure.postgres.status import heads
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import (
    EXIT_FAILED,
    EXIT_NO,
    err,
    progress,
    quiet_logs,
    report_errors,
    spaced,
    with_database,
)
from foldlog.scripts.rebuild_workers import Outcome, Task, rebuild_many


@click.command("rebuild")
@click.argument("spaces", nargs=-1, metavar="[SPACE]...")
@click.option(
    "--projection",
    type=click.Choice(sorted(VERSIONS)),
    default="master",
    show_default=True,
    help="Rebuild this projection.",
)
@click.option("--all", "wants_all", is_flag=True, help="Rebuild every space.")
@click.option(
    "--verify",
    is_flag=True,
    help="Compare with the live table before the swap. If they differ, print the first "
    "difference, keep the live table, and exit with 1.",
)
@click.option("--fresh", is_flag=True, help="Discard the rows of an interrupted rebuild.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rebuild N spaces at a time, each in its own process. [default: number of cores]",
)
@with_database
@report_errors
def rebuild_command(
    spaces: tuple[str, ...],
    wants_all: bool,
    projection: str,
    verify: bool,
    fresh: bool,
    jobs: int | None,
    data: str | None,
    database_url: str | None,
) -> None:
    """Rebuild a projection from the log and make it live.

    The projection is rebuilt for each SPACE. Clients read the old table until the new one
    replaces it. If a rebuild was interrupted, even by a crash, run the same command again: it
    resumes.
    """
    if bool(spaces) == wants_all:
        raise click.UsageError("name the spaces to rebuild, or give --all")
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    outcomes: list[Outcome] = []
    with database(settings) as db:
        with services(db.url, settings) as parts:
            logs = heads(parts.datastore, spaces or None)
        title = f"{len(logs)} spaces" if len(logs) != 1 else next(iter(logs))
        positions = dict.fromkeys(logs, 0)
        # On a terminal, `None` prints above the bar, which else would erase the line.
        file = None if sys.stdout.isatty() else sys.stdout
        with progress(f"rebuilding {title}", sum(logs.values())) as show:

            def report(space: str, position: int, head: int) -> None:
                positions[space], logs[space] = position, head
                show(sum(positions.values()), sum(logs.values()))

            for outcome in rebuild_many(
                db.url,
                list(logs),
                Task(projection, verify, fresh, settings.limits),
                jobs=jobs or os.cpu_count() or 1,
                report=report,
            ):
                outcomes.append(outcome)
                _print_outcome(outcome, file)
    option = "" if projection == "master" else f"--projection {projection} "
    differing = [outcome.space for outcome in outcomes if outcome.differs]
    if differing:
        err.print(
            f"kept the live tables; `foldlog rebuild {option}{' '.join(differing)}` without "
            "--verify swaps in the rebuilt ones"
        )
    if any(outcome.failed for outcome in outcomes):
        sys.exit(EXIT_FAILED)
    if differing:
        sys.exit(EXIT_NO)


def _print_outcome(outcome: Outcome, file: IO[str] | None) -> None:
    rebuilt = outcome.rebuilt
    if rebuilt is None:
        label = "differs" if outcome.differs else "error"
        detail = escape(outcome.differs or outcome.failed)
        err.print(f"[red]{label}:[/red] {detail}", soft_wrap=True, highlight=False)
        return
    compared = ", equal to the live table" if rebuilt.is_compared else ""
    resumed = f" (resumed at {spaced(rebuilt.resumed_at)})" if rebuilt.resumed_at else ""
    click.echo(
        f"{rebuilt.space}: {spaced(rebuilt.events)} events{resumed} in {rebuilt.seconds:.1f} s"
        f"{compared}; generation {rebuilt.generation} is live",
        file=file,
    )
