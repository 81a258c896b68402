"""Implements `foldlog verify`, which checks a log against its hashes, its signed checkpoint, and
its records.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.markup import escape

from foldlog.domain.audit import WrongEvent
from foldlog.domain.notes import InvalidNote, Verifier
from foldlog.infrastructure.files import write_new
from foldlog.scripts.console import (
    EXIT_NO,
    err,
    progress,
    quiet_logs,
    report_errors,
    say,
    with_database,
)
from foldlog.scripts.printable import one_line
from foldlog.scripts.server.process import tune_gc
from foldlog.scripts.services import open_services
from foldlog.scripts.verification.claims import Wrong
from foldlog.scripts.verification.database_source import database_source
from foldlog.scripts.verification.file_sources import file_source
from foldlog.scripts.verification.run import UNSIGNED_SECONDS_MAX, Verification
from foldlog.scripts.verification.service_source import service_source
from foldlog.scripts.verification.sources import Source

KEYS = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="VKEY",
    help="Require a signature by this key; can be repeated. [default: the log's own keys]",
)


@click.command("verify")
@click.argument("space", required=False)
@click.option("--url", help="Verify the log of the running service at this URL.")
@click.option(
    "--token",
    envvar="FOLDLOG_TOKEN",
    help="Access token for --url, of the role auditor. [env: FOLDLOG_TOKEN]",
)
@click.option("--file", metavar="FILE", help="Verify an archive or an export.")
@KEYS
@click.option(
    "--checkpoint", "kept", metavar="FILE", help="Compare with a checkpoint that you saved earlier."
)
@click.option("--save", metavar="FILE", help="Save the verified checkpoint.")
@click.option(
    "--state", metavar="FILE", help="Continue from this file's position, and save the new one."
)
@click.option("--from", "first", type=click.IntRange(min=1), help="First seq. [default: 1]")
@click.option("--to", "last", type=click.IntRange(min=1), help="Last seq. [default: the head]")
@click.option(
    "--unsigned-max",
    "unsigned_seconds_max",
    type=click.FloatRange(min=0),
    default=UNSIGNED_SECONDS_MAX,
    show_default=True,
    metavar="SECONDS",
    help="Allow events after the last checkpoint, if the first is no older than this.",
)
@click.option(
    "--fold/--no-fold",
    "wants_fold",
    default=True,
    help="Compare the master table with the events. [default: --fold]",
)
@with_database
@report_errors
def verify_command(
    space: str | None,
    url: str | None,
    token: str | None,
    file: str | None,
    keys: tuple[str, ...],
    kept: str | None,
    save: str | None,
    state: str | None,
    first: int | None,
    last: int | None,
    unsigned_seconds_max: float,
    wants_fold: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Verify every hash, seq and time in the log of SPACE.

    Reads a database (--data, --database-url), a running service (--url) or a file (--file).
    Compares the events with the signed checkpoint, with a checkpoint that you saved earlier
    (--checkpoint), with the tiles, and with the master table.

    A run from seq 1 checks every event. A run with --from takes the hashes of the earlier
    events from the tiles, and the signed root then proves these hashes. A run with --state
    continues where the last run ended, and trusts the result of that run.

    A run over all events of a database that finds no fault ends the alarm log-incomplete.

    Exit code 1: a check failed; standard error names the first wrong seq.
    """
    if (space is None) == (file is None) or (url and file):
        raise click.UsageError("name a SPACE (of the database, or of --url), or a --file")
    quiet_logs()
    tune_gc()
    verifiers = [verifier_of(text) for text in keys]
    with _open_source(space, url, token, file, data, database_url) as source:
        verification = Verification(
            source,
            keys=verifiers,
            kept_file=None if kept is None else Path(kept),
            state_file=None if state is None else Path(state),
            first=first,
            last=last,
            wants_fold=wants_fold,
            unsigned_seconds_max=unsigned_seconds_max,
        )
        try:
            with progress(f"verifying {source.header.space}", verification.through) as report:
                verification.verify(report)
        except (Wrong, WrongEvent) as exc:
            err.print(
                f"[red]wrong:[/red] {escape(one_line(str(exc)))}", soft_wrap=True, highlight=False
            )
            sys.exit(EXIT_NO)
        if save is not None and verification.signed is not None:
            assert source.checkpoint is not None
            write_new(Path(save), source.checkpoint.decode(), 0o644)
        for line in verification.findings:
            say(line)
    if space is not None and url is None and first in (None, 1) and last is None and state is None:
        with open_services(data, database_url) as parts:
            if parts.store.alarms.end(space):
                say("the alarm log-incomplete is over: no event is missing")


@contextmanager
def _open_source(
    space: str | None,
    url: str | None,
    token: str | None,
    file: str | None,
    data: str | None,
    database_url: str | None,
) -> Iterator[Source]:
    if file is not None:
        with file_source(file) as source:
            yield source
        return
    assert space is not None
    if url is not None:
        with service_source(url, space, token) as source:
            yield source
        return
    with open_services(data, database_url) as parts, database_source(parts, space) as source:
        yield source


def verifier_of(text: str) -> Verifier:
    """Parses the value of --key. Raises `UsageError` if the value is not a vkey."""
    try:
        return Verifier.parse(text)
    except InvalidNote as exc:
        raise click.UsageError(f"--key: {exc}") from exc
