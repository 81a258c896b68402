"""Implements `foldlog replay`, which prints the events of a log, or the records that result from
these events.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import click
import msgspec

from foldlog.domain.errors import OperatorError
from foldlog.domain.events import decode_event
from foldlog.domain.merge import Conflict, Key, Record, conflict_document, fold, view_of
from foldlog.domain.ports import EventStore, RangeQuery
from foldlog.scripts.console import progress, report_errors, say_all, with_database
from foldlog.scripts.services import open_services


@click.command("replay")
@click.argument("space")
@click.option(
    "--from",
    "first",
    type=click.IntRange(min=1),
    default=1,
    help="First seq to read. [default: 1]",
)
@click.option("--to", "last", type=click.IntRange(min=0), help="Last seq to read. [default: head]")
@click.option("--fold", "is_folded", is_flag=True, help="Print the records that the events make.")
@click.option(
    "--conflicts",
    "wants_conflicts",
    is_flag=True,
    help="Print the values that lost against another change.",
)
@with_database
@report_errors
def replay_command(
    space: str,
    first: int,
    last: int | None,
    is_folded: bool,
    wants_conflicts: bool,
    data: str | None,
    database_url: str | None,
) -> None:
    """Print the events of SPACE as JSON lines.

    The lines have the stored bytes. Only invisible characters that act on a terminal are escaped,
    as JSON allows; `foldlog export` has them as they are.

    With --fold, prints records instead of events. Deleted records are included, as tombstones.
    The records are computed only from the events, instead of read from the master table.
    Therefore `--fold --to N` prints the records as they were right after seq N. `--fold --from N`
    ignores all events before seq N.
    """
    if is_folded and wants_conflicts:
        raise click.UsageError("give either --fold or --conflicts")
    if last is not None and first > max(last, 1):
        raise click.UsageError(f"--from {first} is after --to {last}")
    with open_services(data, database_url) as parts:
        head = head_of(parts.store, space)
        through = head if last is None else last
        if through > head:
            raise OperatorError(f"the log of {space!r} ends at seq {head}, before {through}")
        states = _states(parts.store, space, first, through)
        if is_folded:
            records, _ = fold_all(states, first, parts.store.skipped(space))
            say_all(msgspec.json.encode(view_of(r)) for r in sorted_records(records))
        elif wants_conflicts:
            _, conflicts = fold_all(states, first, parts.store.skipped(space))
            say_all(msgspec.json.encode(conflict_document(c)) for c in conflicts)
        else:
            say_all(states)


def head_of(store: EventStore, space: str) -> int:
    """Returns the last seq of the log of a space. Raises `UnknownSpace` if the space is
    missing.
    """
    return store.range_after(space, RangeQuery(0, 1)).head


def fold_all(
    states: Iterable[bytes], first: int = 1, skipped: Container[int] = ()
) -> tuple[dict[Key, Record], list[Conflict]]:
    """Computes records by applying events in the order of the log.

    `states` are the stored bytes of the events, and `first` is the seq of the first event. Returns
    a dict from keys (collection and id) to records, and a list of conflicts. Each `Conflict`
    contains two values that were written to one field: the value that lost and the value that won.

    Events whose seq is in `skipped` are left out before they are decoded, because decoding them
    may fail.
    """
    records: dict[Key, Record] = {}
    conflicts: list[Conflict] = []
    for seq, state in enumerate(states, first):
        if seq not in skipped:
            conflicts += fold(records, decode_event(state))
    return records, conflicts


def sorted_records(records: dict[Key, Record]) -> list[Record]:
    return [records[key] for key in sorted(records) if records[key].exists]


def _states(store: EventStore, space: str, first: int, last: int) -> Iterator[bytes]:
    with progress(f"replaying {space}", max(0, last - first + 1)) as report:
        for number, entry in enumerate(store.entries(space, after=first - 1, through=last), 1):
            yield entry.state
            if number % 500 == 0:
                report(number)
        report(max(0, last - first + 1))
