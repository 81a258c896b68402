"""Implements `foldlog erase`, which removes the values of records from the log. All proofs stay
valid.
"""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

import click
import msgspec

from foldlog.domain.erasure import Erasable, Selection
from foldlog.domain.errors import InvalidRequest
from foldlog.domain.merge import Key
from foldlog.domain.names import check_reason, is_collection, is_record_id
from foldlog.scripts.console import (
    BY,
    EXIT_NO,
    REASON_HELP,
    YES,
    err,
    progress,
    report_errors,
    say,
    spaced,
    with_database,
)
from foldlog.scripts.services import open_services

#: records listed before the prompt; `--dry-run` lists all
LISTED_MAX = 20


@click.command("erase")
@click.argument("space")
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--ids-file",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Read ids from a file, one per line; - is standard input.",
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Erase each record that ever had this value in the log: now, earlier, or in a change that "
    "lost or was refused. VALUE is JSON, otherwise plain text. A record must match all conditions.",
)
@click.option("--reason", help=REASON_HELP)
@BY
@click.option("--dry-run", is_flag=True, help="List the records that would be erased, and stop.")
@YES
@click.option(
    "--vacuum/--no-vacuum",
    "vacuums",
    default=True,
    help="Let PostgreSQL remove the old row versions from its files. [default: --vacuum]",
)
@with_database
@report_errors
def erase_command(
    space: str,
    collection: str,
    ids: tuple[str, ...],
    ids_file: TextIO | None,
    conditions: tuple[str, ...],
    reason: str | None,
    by: str | None,
    dry_run: bool,
    yes: bool,
    vacuums: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Erase records of COLLECTION in SPACE forever.

    Choose the records by their IDs or by --where. An erasure is final. If the command was
    interrupted, run it again: it skips records that are erased already. Exit code 1: the chosen
    records have no values left to erase.
    """
    wanted = _wanted(collection, [*ids, *_lines(ids_file)], conditions)
    if reason is None and not dry_run:
        raise click.UsageError("--reason is missing: say why the records are erased")
    check_reason(reason or "-", by)
    with open_services(data, database_url) as parts:
        with progress(f"searching {space}") as report:
            named = parts.store.find_erasable(space, wanted, report=report)
        found = [one for one in named if one.events]
        if not found:
            err.print(f"nothing to erase; {spaced(len(named))} records were erased before")
            sys.exit(EXIT_NO)
        _list(found if dry_run or len(found) <= LISTED_MAX else found[:LISTED_MAX])
        events = (
            f"{spaced(len(found))} records, in {spaced(sum(one.events for one in found))} places"
        )
        if dry_run:
            err.print(f"would erase {events} of the log")
            return
        if not yes:
            click.confirm(f"Erase {events} of the log of {space} forever?", abort=True, err=True)
        began = time.monotonic()
        with progress(f"erasing in {space}") as report:
            erased = parts.store.erase(
                space,
                [one.key for one in found],
                reason=reason or "",
                by=by,
                tidies=vacuums,
                report=report,
            )
        count = sum(one.events for one in erased)
        seconds = time.monotonic() - began
        err.print(
            f"erased {spaced(len(erased))} records in {spaced(count)} events, {seconds:.1f} s; "
            f"the `record-erased` events start at seq {spaced(min(e.seq for e in erased))}"
        )
    err.print(
        "older backups, exports and replicas still hold the values: docs/explanation/erasure.md"
    )


def _wanted(collection: str, ids: list[str], conditions: tuple[str, ...]) -> Selection:
    if bool(ids) == bool(conditions):
        raise click.UsageError("choose the records: give either ids or --where")
    if not is_collection(collection):
        raise InvalidRequest(f"{collection!r} is not a valid collection name")
    for id in ids:
        if not is_record_id(id):
            raise InvalidRequest(f"{id!r} is not a valid record id")
    keys: tuple[Key, ...] = tuple((collection, id) for id in dict.fromkeys(ids))
    if not conditions:
        return Selection(keys=keys)
    return Selection(collection=collection, where=dict(map(_condition, conditions)))


def _condition(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--where {text}: expected FIELD=VALUE")
    try:
        return field, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return field, value


def _lines(file: TextIO | None) -> list[str]:
    return [] if file is None else [line for line in file.read().splitlines() if line]


def _list(found: list[Erasable]) -> None:
    for one in found:
        say(f"{one.collection}\t{one.id}\t{one.events}")
