"""Implements `foldlog replica`, which reads, changes and syncs a device's replica from a shell."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial, wraps
from typing import Any

import click

from foldlog.client.callbacks import Change
from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.record import Record
from foldlog.client.replica import Replica
from foldlog.client.replica import open as open_replica
from foldlog.scripts.console import AS_JSON, EXIT_FAILED, EXIT_NO, err, progress, report_errors, say

WATCH_SECONDS = 0.5


@click.group("replica")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--token", envvar="FOLDLOG_TOKEN", help="The device's access token. [env: FOLDLOG_TOKEN]"
)
@click.pass_context
def replica_command(ctx: click.Context, file: str, token: str | None) -> None:
    """Use the replica in FILE, as an app on a device does.

    \b
    foldlog replica phone.db open --server http://localhost:3653 --space home
    foldlog replica phone.db put tasks title="Buy milk" done:=false
    foldlog replica phone.db sync --once
    foldlog replica phone.db list tasks
    """
    ctx.obj = partial(open_replica, file, token=token, keep_syncing=False)


def with_replica(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command of `foldlog replica` so that the command gets the opened replica as
    its first argument. The replica is closed when the command ends.
    """

    @click.pass_obj
    @report_errors
    @wraps(command)
    def wrapper(opened: Callable[[], Replica], /, **options: Any) -> None:
        with opened() as replica:
            command(replica, **options)

    return wrapper


@replica_command.command("open")
@click.option("--server", metavar="URL", help="URL of the service. Saved in FILE.")
@click.option("--space", help="Space to sync with. Saved in FILE.")
@click.pass_obj
@report_errors
def open_command(opened: Callable[..., Replica], server: str | None, space: str | None) -> None:
    """Create the replica in FILE if FILE is missing.

    Prints the space and the device id of the replica.
    """
    with opened(server=server, space=space) as replica:
        say(f"a replica of {replica.space}, as device {replica.device}")


@replica_command.command("put")
@click.argument("collection")
@click.argument("fields", nargs=-1, required=True, metavar="FIELD=TEXT|FIELD:=JSON...")
@click.option("--id", help="Id of the record to change. [default: make a new record]")
@with_replica
def put_command(replica: Replica, collection: str, fields: tuple[str, ...], id: str | None) -> None:
    """Create a record, or set fields of the record --id. Prints the record."""
    records = replica.collection(collection)
    values = _values(fields)
    _print(records.create(values) if id is None else records.put(id, values))


@replica_command.command("add")
@click.argument("collection")
@click.argument("id")
@click.argument("fields", nargs=-1, required=True, metavar="FIELD=NUMBER...")
@with_replica
def add_command(replica: Replica, collection: str, id: str, fields: tuple[str, ...]) -> None:
    """Add numbers to fields of a record, and print the record.

    If several devices add numbers to a field, the field gets the sum.
    """
    numbers = _values(tuple(field.replace("=", ":=", 1) for field in fields))
    _print(replica.collection(collection).increment(id, **numbers))


@replica_command.command("delete")
@click.argument("collection")
@click.argument("id")
@with_replica
def delete_command(replica: Replica, collection: str, id: str) -> None:
    """Delete the record ID of COLLECTION."""
    replica.collection(collection).delete(id)


@replica_command.command("get")
@click.argument("collection")
@click.argument("id")
@click.option("--deleted", is_flag=True, help="Include deleted records.")
@with_replica
def get_command(replica: Replica, collection: str, id: str, deleted: bool) -> None:
    """Print the record ID of COLLECTION. Exit code 1: the record is missing."""
    record = replica.collection(collection).get(id, deleted=deleted)
    if record is None:
        sys.exit(EXIT_NO)
    _print(record)


@replica_command.command("list")
@click.argument("collection")
@click.argument("where", nargs=-1, metavar="[FIELD=TEXT|FIELD:=JSON]...")
@click.option("--order-by", metavar="FIELD", help="Sort by FIELD, or descending by -FIELD.")
@click.option("--limit", type=click.IntRange(min=0), help="Print N records at most.", metavar="N")
@click.option("--deleted", is_flag=True, help="Include deleted records.")
@with_replica
def list_command(
    replica: Replica,
    collection: str,
    where: tuple[str, ...],
    order_by: str | None,
    limit: int | None,
    deleted: bool,
) -> None:
    """Print the records of COLLECTION whose fields have the given values.

    Prints one JSON object per line. By default, prints all records of the collection.
    """
    for record in replica.collection(collection).query(
        _values(where), order_by=order_by, limit=limit, deleted=deleted
    ):
        _print(record)


@replica_command.command("sync")
@click.option("--once", is_flag=True, help="Stop when all is in sync. [default: run until Ctrl-C]")
@with_replica
def sync_command(replica: Replica, once: bool) -> None:
    """Push the queued changesets and pull new events."""
    if not once:
        _follow(replica, lambda change: None)
        return
    with progress("loading a snapshot") as report:
        replica.callbacks.on_progress(report)
        try:
            done = replica.sync()
        except (ServerProblem, Unreachable):
            err.print(f"not in sync: {replica.status().why_not}; {replica.status().unsent} unsent")
            sys.exit(EXIT_FAILED)
    err.print(f"pushed {done.pushed}, pulled {done.pulled}, refused {len(done.refused)}")


@replica_command.command("watch")
@with_replica
def watch_command(replica: Replica) -> None:
    """Sync until Ctrl-C, and print each record that changes."""
    _follow(replica, lambda change: _print_change(change))


@replica_command.command("status")
@AS_JSON
@with_replica
def status_command(replica: Replica, as_json: bool) -> None:
    """Show the progress and the problems of syncing. Exit code 1: the last sync failed, or the
    queue contains a refused or rejected changeset.
    """
    status = replica.status()
    known = {**asdict(status), "lag": status.lag, "why_not": status.why_not}
    if as_json:
        say(json.dumps(known))
    else:
        for name, value in known.items():
            if value not in (None, []) and name not in ("problem", "refused"):
                say(f"{name:>18}  {value}")
        for refusal in status.refused:
            say(f"{refusal.state:>18}  {refusal.id}: {refusal.code}, {refusal.detail}")
    if status.problem or status.refused:
        sys.exit(EXIT_NO)


@replica_command.command("unsent")
@with_replica
def unsent_command(replica: Replica) -> None:
    """Print the queued changesets as JSON lines.

    The member `state` of each line is "waiting" if the changeset is still to be sent. It is
    "refused" if a guard or a schema failed on the server. It is "rejected" if the changeset is
    malformed or over a limit.
    """
    for changeset in replica.unsent():
        say(json.dumps(changeset))


@replica_command.command("drop")
@click.argument("id")
@with_replica
def drop_command(replica: Replica, id: str) -> None:
    """Delete the changeset ID, which the server has refused or rejected, from the queue."""
    try:
        replica.drop(id)
    except LookupError as exc:
        raise click.ClickException(str(exc)) from exc


def _follow(replica: Replica, show: Any) -> None:
    with replica.callbacks.changes() as arriving:
        replica.start()
        try:
            while True:
                for change in arriving(WATCH_SECONDS):
                    show(change)
        except KeyboardInterrupt:
            return


def _values(fields: tuple[str, ...]) -> dict[str, Any]:
    """Parses arguments of the form `name=text` or `name:=JSON`.

    Returns a dict from field names to values. Raises `click.UsageError` if an argument has another
    form, or if its JSON is invalid.
    """
    values: dict[str, Any] = {}
    for field in fields:
        name, separator, text = field.partition("=")
        if not separator:
            raise click.UsageError(f"{field!r} is not FIELD=TEXT or FIELD:=JSON")
        if not name.endswith(":"):
            values[name] = text
            continue
        try:
            values[name[:-1]] = json.loads(text)
        except ValueError as exc:
            raise click.UsageError(f"{field!r}: not JSON: {exc}") from exc
    return values


def _print(record: Record) -> None:
    shown = {**asdict(record), "fields": dict(record.fields)}
    say(json.dumps(shown, ensure_ascii=False))


def _print_change(change: Change) -> None:
    if change.record is None:
        say(json.dumps({"collection": change.collection, "id": change.id, "gone": True}))
    else:
        _print(change.record)
    sys.stdout.flush()
