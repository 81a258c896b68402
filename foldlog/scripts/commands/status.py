"""Implements `foldlog status`, which shows the progress of the projections and of the signer.

The command also shows whether a projection is halted or the signer has stopped.
"""

from __future__ import annotations

import json
import sys

import click
from rich.markup import escape
from rich.table import Table

from foldlog.domain.errors import UnknownSpace
from foldlog.infrastructure.postgres.status import (
    CheckpointStatus,
    IncompleteLog,
    ProjectionStatus,
    checkpoints,
    incomplete_logs,
    status,
)
from foldlog.scripts.console import AS_JSON, EXIT_NO, out, report_errors, spaced, with_database
from foldlog.scripts.services import open_services


@click.command("status")
@click.argument("space", required=False)
@AS_JSON
@with_database
@report_errors
def status_command(
    space: str | None, as_json: bool, data: str | None, database_url: str | None
) -> None:
    """Show the lag of each projection, and the last checkpoint.

    Shows all spaces unless SPACE is given. Exit code 1: a projection is halted, fails or
    needs a rebuild, or the signer has stopped.
    """
    with open_services(data, database_url) as parts:
        lines = status(parts.datastore, space)
        signed = checkpoints(parts.datastore, space)
        incomplete = incomplete_logs(parts.datastore, space)
    if space is not None and not lines:
        raise UnknownSpace(space)
    if as_json:
        for line in lines:
            click.echo(json.dumps({**line._asdict(), "lag": line.lag}))
        for checkpoint in signed:
            click.echo(json.dumps({"checkpoint": checkpoint._asdict()}))
        for one in incomplete:
            click.echo(json.dumps({"incomplete": {**one._asdict(), "holes": one.holes._asdict()}}))
    else:
        out.print(_projection_table(lines))
        if signed:
            out.print(_checkpoint_table(signed))
        for one in incomplete:
            out.print(_incomplete_line(one), soft_wrap=True)
    has_stopped = bool(incomplete) or any(
        line.stopped_at is not None or line.failing_why is not None or line.needs_rebuild
        for line in lines
    )
    if has_stopped or any(checkpoint.alarm for checkpoint in signed):
        sys.exit(EXIT_NO)


def _incomplete_line(log: IncompleteLog) -> str:
    state = str(log.holes) or f"complete again ({log.alarm}): run foldlog verify"
    return f"[red]log-incomplete: {log.space}: {escape(state)}[/red], since {log.since}"


def _checkpoint_table(signed: list[CheckpointStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("space", "signed", "unsigned", "at", "state"):
        table.add_column(name, justify="right" if name in ("signed", "unsigned") else "left")
    for line in signed:
        state = "signed"
        if line.alarm:
            state = f"[red]{line.alarm}: {escape(line.alarm_detail or '')}[/red]"
        unsigned = spaced(line.head - line.size)
        table.add_row(line.space, spaced(line.size), unsigned, line.signed_at or "never", state)
    return table


def _projection_table(lines: list[ProjectionStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("space", "head", "projection", "generation", "projected", "lag", "state"):
        is_number = name in ("head", "generation", "projected", "lag")
        table.add_column(name, justify="right" if is_number else "left")
    for line in lines:
        state = "live" if line.is_live else "being rebuilt"
        if line.needs_rebuild:
            why = "made by another merge rule" if line.is_foreign else "live, without its history"
            state = f"[red]{why}: run foldlog rebuild[/red]"
        if line.failing_why is not None:
            state = f"[red]failing: {escape(line.failing_why)}[/red]"
        if line.stopped_at is not None:
            state = f"[red]stopped at {line.stopped_at}: {escape(line.stopped_why or '')}[/red]"
        table.add_row(
            line.space,
            spaced(line.head),
            line.projection,
            str(line.generation),
            spaced(line.position),
            spaced(line.lag),
            state,
        )
    return table
