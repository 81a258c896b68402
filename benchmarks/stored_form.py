"""What events on large records cost: bytes of all tables, bytes of WAL, time, and memory.

    python -m benchmarks.stored_form [NAME ...]

Each case makes a new database, pushes events, projects them, and prints one line of JSON. The sizes
are those of `pg_total_relation_size` of all tables, the log included, without VACUUM FULL.
`FOLDLOG_NOTES` is the number of large notes of the cases with many of them (default 40).
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from foldlog.domain.history import Point
from foldlog.domain.ports import AsOfQuery
from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable
from foldlog.infrastructure.postgres.rebuild.projector import Projector
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.schema.migrate import migrate
from tests.helpers import changeset, push_of, put

MB = 1_000_000
NOTES = int(os.environ.get("FOLDLOG_NOTES", "40"))
SELECT_SIZES = """
SELECT sum(pg_total_relation_size(oid))::bigint,
       pg_total_relation_size('events')::bigint,
       pg_current_wal_lsn() - '0/0'::pg_lsn
  FROM pg_class
 WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""


class Case:
    """A new database, and the parts of the service that fold."""

    def __init__(self, url: str, datastore: Datastore):
        self._url = url
        self.log = PostgresEventStore(datastore)
        self.projector = Projector(datastore, MasterProjection())
        self.master = PostgresMasterTable(datastore)
        self.rebuilder = Rebuilder(datastore, MasterProjection())
        self.head = 0

    def push(self, *changesets: Any) -> None:
        self.head = self.log.push("s", push_of(*changesets)).head

    def project(self) -> float:
        """Projects all events, and returns the seconds."""
        began = time.perf_counter()
        while self.projector.project_or_halt("s"):
            pass
        position = self.master.position("s").position
        assert position == self.head, f"stopped at {position} of {self.head}"
        return time.perf_counter() - began

    def sizes(self) -> tuple[int, int, int]:
        """Returns the bytes of all tables, of the log, and of the WAL so far."""
        with psycopg.connect(self._url) as conn:
            conn.execute("CHECKPOINT")
            found = conn.execute(SELECT_SIZES).fetchone()
        assert found is not None
        return int(found[0]), int(found[1]), int(found[2])

    def growth(self, work: Callable[[], None]) -> dict[str, float]:
        before = self.sizes()
        work()
        seconds = self.project()
        after = self.sizes()
        tables, log, wal = ((a - b) / MB for a, b in zip(after, before, strict=True))
        return {
            "tables_mb": round(tables, 2),
            "log_mb": round(log, 2),
            "wal_mb": round(wal, 2),
            "project_s": round(seconds, 2),
        }


def text_of(size: int, seed: int = 0) -> str:
    """Random letters, which hardly compress, in lines of 60."""
    letters = random.Random(seed)
    line = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."
    return "".join(letters.choices(line, k=size))


def titles(case: Case) -> dict[str, float]:
    """300 changes of the title of a note of 300 KB."""
    case.push(changeset(put("note", title="t", text=text_of(300_000))))
    case.project()
    return case.growth(
        lambda: [case.push(changeset(put("note", title=f"title {n}"))) for n in range(300)] and None
    )


def saves(case: Case) -> dict[str, float]:
    """300 saves of a note of 300 KB that differ in one line. The log has each whole text."""
    text = text_of(300_000)

    def work() -> None:
        for n in range(300):
            case.push(changeset(put("note", text=f"{text[: n * 60]}line {n}{text[n * 60 + 8 :]}")))

    return case.growth(work)


def flags(case: Case) -> dict[str, float]:
    """One changeset that sets a flag on each of `NOTES` notes of 3.9 MB."""
    text = text_of(3_900_000)
    for n in range(NOTES):
        case.push(changeset(put(f"note{n}", text=f"{n} {text}")))
        case.project()
    sent = changeset(*(put(f"note{n}", flag=True) for n in range(NOTES)))
    found = case.growth(lambda: case.push(sent))
    return {**found, "event_bytes": len(msgspec.json.encode(sent)), "notes": NOTES}


def grown(case: Case) -> dict[str, float]:
    """A record grown by puts of 4 MB until puts are refused by the fold, and a flag on it."""

    def work() -> None:
        for n in range(8):
            case.push(changeset(put("note", **{f"f{n}": text_of(3_900_000, n)})))
        case.push(changeset(put("note", flag=True)))

    return case.growth(work)


def asof(case: Case) -> dict[str, float]:
    """Reads of the past: 1,000 small records, and one of 300 KB after 300 changes of its title."""
    fields = {f"field{n}": f"a value of some length {n}" for n in range(8)}
    for n in range(0, 1_000, 100):
        case.push(*(changeset(put(f"r{m:04}", **fields)) for m in range(n, n + 100)))
    for n in range(10):
        case.push(*(changeset(put(f"r{m:04}", n=n)) for m in range(1_000)))
    at = case.head
    case.push(changeset(put("note", title="t", text=text_of(300_000))))
    for n in range(300):
        case.push(changeset(put("note", title=f"title {n}")))
    case.project()

    def page() -> None:
        assert len(case.master.as_of("s", AsOfQuery(Point(at), 1_000)).records) > 500

    def record() -> None:
        case.master.record_as_of("s", ("tasks", "r0500"), Point(at))

    def note() -> None:
        case.master.record_as_of("s", ("tasks", "note"), Point(case.head - 50))

    return {
        "page_ms": median_ms(page, 30),
        "record_ms": median_ms(record, 200),
        "note_ms": median_ms(note, 100),
    }


def median_ms(work: Callable[[], None], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(1000 * statistics.median(taken), 3)


def rates(case: Case) -> dict[str, float]:
    """Events per second of the projector and of a rebuild: 20,000 events on 4,000 records."""
    fields = {f"field{n}": f"a value of some length {n}" for n in range(5)}
    for n in range(20):
        sent = (changeset(put(f"r{(n * 1000 + m) % 4000:04}", **fields, n=n)) for m in range(1_000))
        case.push(*sent)
    projector = case.project()
    began = time.perf_counter()
    case.rebuilder.rebuild("s")
    rebuild = time.perf_counter() - began
    return {
        "projector_per_s": round(case.head / projector),
        "rebuild_per_s": round(case.head / rebuild),
    }


CASES: dict[str, Callable[[Case], dict[str, float]]] = {
    case.__name__: case for case in (titles, saves, flags, grown, asof, rates)
}


@contextmanager
def new_case() -> Iterator[Case]:
    with (
        tempfile.TemporaryDirectory(prefix="foldlog-", ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder)) as postgres,
    ):
        migrate(postgres.url)
        with Datastore(postgres.url) as datastore:
            name = conninfo_to_dict(postgres.url)["dbname"]
            yield Case(make_conninfo(postgres.superuser_url, dbname=name), datastore)


def main(names: list[str]) -> None:
    for name in names or CASES:
        with new_case() as case:
            found = CASES[name](case)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(json.dumps({"case": name, **found, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
