"""Implements `foldlog status`, which shows the progress of the projections and of the signer.

The command also shows whether a projection is halted or the signer has stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click
from rich.markup import escape
from rich.table import Table

from foldlog.domain.errors import UnknownSpace
from foldlog.infrastructure.postgres.proofs.signers import StoredSigner, stored_signers
from foldlog.infrastructure.postgres.status import (
    CheckpointStatus,
    IncompleteLog,
    ProjectionStatus,
    UnfinishedImport,
    checkpoints,
    every_space_tokens,
    incomplete_logs,
    status,
    unfinished_imports,
)
from foldlog.infrastructure.signing.keys import why_unsigned
from foldlog.infrastructure.wiring import Services
from foldlog.scripts.console import (
    AS_JSON,
    EXIT_NO,
    out,
    report_errors,
    say,
    spaced,
    with_database,
)
from foldlog.scripts.services import open_services


@click.command("status")
@click.argument("space", required=False)
@AS_JSON
@with_database
@report_errors
def status_command(
    space: str | None, as_json: bool, data: str | None, database_url: str | None
) -> None:
    """Show the lag of each projection, the last checkpoint, and the tokens for every space.

    Says if nothing is signed, because there is no key, and lists unfinished imports. Shows all
    spaces unless SPACE is given, then without those tokens. Exit code 1: a projection is halted,
    fails or needs a rebuild, or a signer or a witness has stopped.
    """
    with open_services(data, database_url) as parts:
        lines = status(parts.datastore, space)
        signed = checkpoints(parts.datastore, space)
        incomplete = incomplete_logs(parts.datastore, space)
        tokens = every_space_tokens(parts.datastore) if space is None else {}
        imports = unfinished_imports(parts.datastore, space)
        signers = stored_signers(parts.datastore)
        unsigned_why = _unsigned_why(parts, lines, signed)
    if space is not None and not (lines or imports):
        raise UnknownSpace(space)
    if as_json:
        for line in lines:
            more = {"lag": line.lag, "unsigned_why": unsigned_why}
            say(json.dumps(line._asdict() | more))
        for checkpoint in signed:
            say(json.dumps({"checkpoint": checkpoint._asdict()}))
        for signer in signers:
            say(json.dumps({"signer": signer._asdict()}))
        for one in incomplete:
            say(json.dumps({"incomplete": {**one._asdict(), "holes": one.holes._asdict()}}))
        for unfinished in imports:
            say(json.dumps({"importing": unfinished._asdict()}))
        if any(tokens.values()):
            say(json.dumps({"every_space_tokens": tokens}))
    else:
        out.print(_projection_table(lines))
        if signed:
            out.print(_checkpoint_table(signed))
        for one in incomplete:
            out.print(_incomplete_line(one), soft_wrap=True)
        if any(tokens.values()):
            counts = ", ".join(f"{count} {role}" for role, count in tokens.items())
            out.print(f"tokens for every space: {counts} (foldlog token list)")
        for unfinished in imports:
            out.print(_import_line(unfinished), soft_wrap=True)
        if unsigned_why is not None:
            out.print(f"[yellow]nothing is signed:[/yellow] {escape(unsigned_why)}", soft_wrap=True)
        for told in _signer_lines(signers):
            out.print(told, soft_wrap=True, highlight=False)
    has_stopped = bool(incomplete) or any(
        line.stopped_at is not None or line.failing_why is not None or line.needs_rebuild
        for line in lines
    )
    has_stopped = has_stopped or any(signer.refused_why for signer in signers)
    if has_stopped or any(checkpoint.alarm for checkpoint in signed):
        sys.exit(EXIT_NO)


def _unsigned_why(
    parts: Services, lines: list[ProjectionStatus], signed: list[CheckpointStatus]
) -> str | None:
    """Returns the reason why events stay unsigned. Returns `None` if there is a key, or if all
    events are signed: this machine may be another one than that of the signer."""
    sizes = {line.space: line.size for line in signed}
    if lines and all(sizes.get(line.space, 0) >= line.head for line in lines):
        return None
    return why_unsigned(parts.settings.keys_folder)


def _incomplete_line(log: IncompleteLog) -> str:
    state = str(log.holes) or f"complete again ({log.alarm}): run foldlog verify"
    return f"[red]log-incomplete: {log.space}: {escape(state)}[/red], since {log.since}"


def _import_line(unfinished: UnfinishedImport) -> str:
    space, _, events = unfinished
    return (
        f"[yellow]space-importing: {space}:[/yellow] {spaced(events)} events so far; if no import "
        "runs, run it again, or foldlog remove-import"
    )


def _signer_lines(signers: list[StoredSigner]) -> Iterator[str]:
    """Yields a line for each service that may not sign, and one if several keys are in use."""
    for signer in signers:
        if signer.refused_why is not None:
            who = f"{'signer' if signer.use == 'log' else signer.use} in the folder {signer.folder}"
            why = escape(signer.refused_why)
            yield f"[red]another-folder: the {who} is refused: {why}[/red], since " + (
                signer.refused_since or "?"
            )
    for use in ("log", "witness"):
        in_use = [s for s in signers if s.use == use and (s.signs or s.refused_why is not None)]
        if len({signer.key for signer in in_use}) > 1:
            keys = ", ".join(
                f"{signer.key} {'signs' if signer.signs else 'is refused'}" for signer in in_use
            )
            yield f"[red]two {use} keys are in use for this database: {escape(keys)}[/red]"


def _checkpoint_table(signed: list[CheckpointStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("space", "signed", "unsigned", "at", "state"):
        table.add_column(name, justify="right" if name in ("signed", "unsigned") else "left")
    for line in signed:
        state = "signed"
        if line.alarm:
            by = f" (folder {line.alarm_raised_by})" if line.alarm_raised_by else ""
            state = f"[red]{line.alarm}: {escape(line.alarm_detail or '')}[/red]{by}"
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
