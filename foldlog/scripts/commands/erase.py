"""`foldlog erase`: a person's right. Values leave the log, and every proof stays valid."""

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
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import database, services
from foldlog.scripts.console import (
    BY,
    EXIT_NO,
    err,
    progress,
    quiet_logs,
    report_errors,
    spaced,
    with_database,
)

#: so many are listed before the question; `--dry-run` lists all
LISTED_MAX = 20


@click.command("erase")
@click.argument("space")
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--ids-file", type=click.File(encoding="utf-8"), help="Ids, one a line; - is standard input."
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Every record of which something in the log ever said this: now, before, in a change that "
    "lost or was refused. VALUE is JSON, or else text. Several must be said at once.",
)
@click.option("--reason", help="Why. It stays in the log for ever: name no person.")
@BY
@click.option("--dry-run", is_flag=True, help="List what would be erased, by collection and id.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--vacuum/--no-vacuum",
    "vacuums",
    default=True,
    help="Afterwards, have PostgreSQL give up the rows as they were. [default: --vacuum]",
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
    """Erase records of COLLECTION in SPACE: the ones with these IDs, or that --where names.

    There is no way back. What was erased already is passed over, so an erasure that was
    interrupted is gone on with by the same command. Exits with 1 if there is nothing to erase.
    """
    wanted = _wanted(collection, [*ids, *_lines(ids_file)], conditions)
    if reason is None and not dry_run:
        raise click.UsageError("say why: --reason")
    check_reason(reason or "-", by)
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url)
    with database(settings) as db, services(db.url, settings) as parts:
        with progress(f"looking through {space}") as report:
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
            click.confirm(f"Erase {events} of the log of {space}, for ever?", abort=True, err=True)
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
            f"`record-erased` is seq {spaced(min(e.seq for e in erased))} and on"
        )
    err.print(
        "older backups, exports and replicas still hold the values: docs/explanation/erasure.md"
    )


def _wanted(collection: str, ids: list[str], conditions: tuple[str, ...]) -> Selection:
    if bool(ids) == bool(conditions):
        raise click.UsageError("name records by their ids, or say --where")
    if not is_collection(collection):
        raise InvalidRequest(f"{collection!r} cannot name a collection")
    for id in ids:
        if not is_record_id(id):
            raise InvalidRequest(f"{id!r} cannot name a record")
    keys: tuple[Key, ...] = tuple((collection, id) for id in dict.fromkeys(ids))
    if not conditions:
        return Selection(keys=keys)
    return Selection(collection=collection, where=dict(map(_condition, conditions)))


def _condition(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--where {text}: FIELD=VALUE is meant")
    try:
        return field, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return field, value


def _lines(file: TextIO | None) -> list[str]:
    return [] if file is None else [line for line in file.read().splitlines() if line]


def _list(found: list[Erasable]) -> None:
    for one in found:
        click.echo(f"{one.collection}\t{one.id}\t{one.events}")
