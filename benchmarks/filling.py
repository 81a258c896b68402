"""Fills long logs quickly: the domain makes the events, and the log's recorder copies them in.

The stored events equal those of a push, and the projectors fold them as usual. Requests and
decisions are left out, because the benchmark is the only writer of the space.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime
from itertools import count, islice

import msgspec
from psycopg import Connection

from foldlog.domain import proofs
from foldlog.domain.changesets import Changeset, WireOperation
from foldlog.domain.events import LogEntry, changeset_entry
from foldlog.domain.times import parse_time
from foldlog.infrastructure.postgres.append.spaces import create_space
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.wakeups import CHANNEL, NOTIFY
from foldlog.infrastructure.postgres.log.writer import LogBatch, append_batch

from .errors import BenchmarkFailed
from .workload import COLLECTION, NOW, Item, Workload

BATCH_EVENTS = 10_000
WRITES_PER_RECORD = 10
#: consecutive changesets of one device
CHANGESETS_PER_DEVICE = 100


def fill(
    url: str,
    space: str,
    events: int,
    *,
    batch: int = BATCH_EVENTS,
    writes_per_record: int = WRITES_PER_RECORD,
) -> None:
    """Fills a space with so many events. Each batch is a transaction."""
    history = Workload(space).history(
        events, CHANGESETS_PER_DEVICE, writes_per_record=writes_per_record
    )
    entries = _entries(item for items in history for item in items)
    with Datastore(url, pool_size_max=1) as datastore:
        with datastore.committed() as cursor:
            create_space(cursor, space)
            found = cursor.execute("SELECT log::text FROM spaces WHERE space = %s", (space,))
            [log] = found.fetchone() or [""]
        mark, done = "", 0
        while made := list(islice(entries, batch)):
            counters = {item.device: item.counter for item, _ in made}
            added = [entry for _, entry in made]
            with datastore.get_connection() as conn:
                if not append_batch(conn, LogBatch(space, log, mark, added, counters)):
                    raise BenchmarkFailed(f"{space} was not empty")
            mark, done = added[-1].mark, done + len(added)
    if done != events:
        raise BenchmarkFailed(f"{done} events were made, not {events}")


def announce(database: Connection, space: str, head: int) -> None:
    """Notifies the projectors, as each append does."""
    database.execute(NOTIFY, {"channel": CHANNEL, "spaces": [space], "heads": [head]})


def _entries(items: Iterator[Item]) -> Iterator[tuple[Item, LogEntry]]:
    made_at, now, salts = datetime.fromisoformat(NOW), parse_time(NOW), random.Random(1)
    for seq, item in zip(count(1), items):
        fields = msgspec.json.decode(f"{{{item.fields}}}")
        entry = changeset_entry(
            Changeset(
                id=item.id,
                base=item.base,
                made_at=made_at,
                ops=[WireOperation("put", COLLECTION, id=item.record, fields=fields)],
                counter=item.counter,
            ),
            seq=seq,
            device=item.device,
            received_at=now + seq,
            time=now,
            refusal=msgspec.UNSET,
            salt=salts.randbytes(proofs.SALT_BYTES),
        )
        yield item, entry
