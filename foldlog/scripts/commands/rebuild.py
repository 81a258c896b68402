"""`foldlog rebuild`: a projection anew from the log, beside the live one."""

from __future__ import annotations

import os
import sys
from typing import IO

import click
from rich.markup import escape

from foldlog.infrastructure.postgres.projections import VERSIONS
from foldlog.infrastructure.postgres.status import spaces as all_spaces
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
from foldlog.scripts.rebuild_workers import Outcome, Task, heads, rebuild_many


@click.command("rebuild")
@click.argument("spaces", nargs=-1, metavar="[SPACE]...")
@click.option(
    "--projection",
    type=click.Choice(sorted(VERSIONS)),
    default="master",
    show_default=True,
    help="Which one.",
)
@click.option("--all", "wants_all", is_flag=True, help="Rebuild every space.")
@click.option(
    "--verify",
    is_flag=True,
    help="Compare with the live table before the swap; if they differ, print the first "
    "difference, keep the live table, and exit with 1.",
)
@click.option("--fresh", is_flag=True, help="Throw away what an interrupted rebuild left.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rebuild so many spaces at a time, each in a process. [default: the number of cores]",
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
    """Rebuild a projection of each SPACE from its log, and swap them in.

    Clients go on reading meanwhile. A rebuild that is interrupted, however hard, goes on where it
    stopped when it is started again.
    """
    if bool(spaces) == wants_all:
        raise click.UsageError("name the spaces to rebuild, or say --all")
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    outcomes: list[Outcome] = []
    with database(settings) as db:
        with services(db.url, settings) as parts:
            logs = heads(parts.datastore, spaces or all_spaces(parts.datastore))
        title = f"{len(logs)} spaces" if len(logs) != 1 else next(iter(logs))
        positions = dict.fromkeys(logs, 0)
        answers = None if sys.stdout.isatty() else sys.stdout  # else they would go with the bar
        with progress(f"rebuilding {title}", sum(logs.values())) as told_so_far:

            def report(space: str, position: int, head: int) -> None:
                positions[space], logs[space] = position, head
                told_so_far(sum(positions.values()), sum(logs.values()))

            for outcome in rebuild_many(
                db.url,
                list(logs),
                Task(projection, verify, fresh, settings.limits),
                jobs=jobs or os.cpu_count() or 1,
                report=report,
            ):
                outcomes.append(outcome)
                _tell(outcome, answers)
    option = "" if projection == "master" else f"--projection {projection} "
    differing = [outcome.space for outcome in outcomes if outcome.differs]
    if differing:
        err.print(
            f"kept the live tables; `foldlog rebuild {option}{' '.join(differing)}` without "
            "--verify swaps the rebuilt ones in"
        )
    if any(outcome.failed for outcome in outcomes):
        sys.exit(EXIT_FAILED)
    if differing:
        sys.exit(EXIT_NO)


def _tell(outcome: Outcome, answers: IO[str] | None) -> None:
    rebuilt = outcome.rebuilt
    if rebuilt is None:
        what = "differs" if outcome.differs else "error"
        why = escape(outcome.differs or outcome.failed)
        err.print(f"[red]{what}:[/red] {why}", soft_wrap=True, highlight=False)
        return
    compared = ", equal to the live table" if rebuilt.is_compared else ""
    resumed = f" (resumed at {spaced(rebuilt.resumed_at)})" if rebuilt.resumed_at else ""
    click.echo(
        f"{rebuilt.space}: {spaced(rebuilt.events)} events{resumed} in {rebuilt.seconds:.1f} s"
        f"{compared}; generation {rebuilt.generation} is live",
        file=answers,
    )
