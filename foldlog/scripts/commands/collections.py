"""Implements `foldlog collections`, which lists the schemas of a space, and `foldlog define`, which
sets a schema.
"""

from __future__ import annotations

import sys
from typing import IO

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from foldlog.domain.collections import Check, Outcome, Proposal
from foldlog.domain.errors import InvalidRequest, InvalidSchema, SchemaNotAdditive, SchemaViolated
from foldlog.domain.json_schema import JsonSchema, Violation
from foldlog.domain.limits import LIMITS
from foldlog.domain.names import is_collection, is_space
from foldlog.scripts.console import (
    AS_JSON,
    BY,
    EXIT_NO,
    err,
    out,
    progress,
    report_errors,
    say,
    spaced,
    with_database,
)
from foldlog.scripts.services import open_services


@click.command("collections")
@click.argument("space")
@AS_JSON
@with_database
@report_errors
def collections_command(
    space: str, as_json: bool, data: str | None, database_url: str | None
) -> None:
    """List the collections of SPACE that have a schema.

    With --json, the output includes the schemas.
    """
    with open_services(data, database_url) as parts:
        versions = parts.store.collections(space)
        if as_json:
            for version in versions:
                definition, _ = parts.store.collection(space, version.collection)
                say(msgspec.json.encode(definition).decode())
            return
    table = Table(box=None, pad_edge=False)
    for name in ("collection", "version", "seq", "defined at", "by"):
        table.add_column(name, justify="right" if name in ("version", "seq") else "left")
    for version in versions:
        forced = " (forced)" if version.forced else ""
        table.add_row(
            version.collection,
            f"{version.version}{forced}",
            spaced(version.seq),
            version.defined_at,
            escape(version.by or ""),
        )
    out.print(table)


@click.command("define")
@click.argument("space")
@click.argument("collection")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--dry-run",
    "is_dry_run",
    is_flag=True,
    help="Check the schema and stored records only.",
)
@click.option("--force", is_flag=True, help="Define it even if allowed or stored values break it.")
@click.option(
    "--if-version",
    type=click.IntRange(min=0),
    help="Refuse unless the current version is N; 0 means not defined yet.",
    metavar="N",
)
@BY
@with_database
@report_errors
def define_command(
    space: str,
    collection: str,
    file: IO[bytes],
    is_dry_run: bool,
    force: bool,
    if_version: int | None,
    by: str | None,
    data: str | None,
    database_url: str | None,
) -> None:
    """Define COLLECTION of SPACE with the JSON Schema (draft 2020-12) in FILE.

    A new version of a schema must allow every value that the previous version allowed, and the
    stored records must be valid under it. Otherwise the old schema stays in use, and the exit
    code is 1. With --force, the new version is stored anyway.
    """
    if not is_space(space) or not is_collection(collection):
        raise InvalidRequest(f"{space}/{collection} is not a valid space and collection")
    wanted = Proposal(
        JsonSchema.checked(_read(file.read()), LIMITS),
        by=by,
        is_dry_run=is_dry_run,
        force=force,
        if_version=if_version,
    )
    with (
        open_services(data, database_url) as parts,
        progress(f"checking {collection}") as report,
    ):
        try:
            outcome = parts.store.define(space, collection, wanted, report=report)
        except SchemaNotAdditive as exc:
            refused, code = str(exc), exc.code
            reasons = msgspec.convert(exc.extra["reasons"], list[Violation])
            check = None
        except SchemaViolated as exc:
            refused, code = str(exc), exc.code
            reasons, check = [], msgspec.convert(exc.extra, Check)
        else:
            refused = code = ""
            reasons, check = outcome.reasons, outcome.check
    _print_problems(reasons, check)
    if refused:
        err.print(f"[red]refused:[/red] {escape(refused)} ({code})", soft_wrap=True)
        sys.exit(EXIT_NO)
    _print_outcome(outcome)
    if is_dry_run and (reasons or (check is not None and check.violating)):
        sys.exit(EXIT_NO)


def _read(text: bytes) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidSchema(f"not JSON: {exc}") from exc


def _print_problems(reasons: list[Violation], check: Check | None) -> None:
    for reason in reasons:
        say(f"not additive: {reason.path or '/'} {reason.reason}")
    if check is None:
        return
    for found in check.first:
        say(f"does not fit: {found.id} at {found.path or '/'}: {found.reason}")
    if check.violating > len(check.first):
        say(f"... and {spaced(check.violating - len(check.first))} more")
    err.print(f"{spaced(check.violating)} of {spaced(check.checked)} stored records do not fit")


def _print_outcome(outcome: Outcome) -> None:
    name = f"{outcome.collection}, version {outcome.version}"
    if outcome.seq is None:
        say(f"{name}: not stored, a dry run")
    else:
        say(f"{name}: seq {outcome.seq}")
