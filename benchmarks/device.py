"""`python -m benchmarks.device`: times and bytes of a device with the real client library.

Each figure is shown with its alternative: a snapshot with the whole log, an edit with its field.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from foldlog.client.replica import Replica
from foldlog.client.sync import synchroniser
from foldlog.client.transport.server import HttpServer
from foldlog.domain.limits import LIMITS
from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.scripts.server.process import serving

from .bench import COMMAND, FULL, UNLIMITED, Bench
from .connection import fetch, request
from .workload import COLLECTION, Workload, push_of

SPACE = "first-sync"
BEGIN, END = "<!-- device -->", "<!-- /device -->"
DOCUMENT = Path(__file__).parent.parent / "docs" / "explanation" / "benchmarks.md"
LOCAL_WRITES = 500
EDITS = 20


@click.command()
@click.option("--events", default=1_000_000, show_default=True)
@click.option("--writes-per-record", default=10, show_default=True)
@click.option("--publish", is_flag=True, help="Put the figures into the docs.")
def main(events: int, writes_per_record: int, publish: bool) -> None:
    """Measures a first sync by snapshot and by events, a sent field edit, and a local write."""
    with tempfile.TemporaryDirectory(prefix="foldlog-bench-") as folder:
        data = Path(folder)
        with (
            serving(COMMAND, str(data / "data"), env=UNLIMITED) as url,
            EmbeddedPostgres(data / "data") as postgres,
        ):
            port = urlsplit(url).port
            assert port is not None
            bench = Bench(FULL, data, port, port, postgres)
            fill(bench, port, events, writes_per_record)
            rows = [
                first_sync(url, data, "snapshot"),
                first_sync(url, data, "events"),
                *field_edit(url, data),
                local_write(data),
            ]
            bench.close()
    head = f"After {events:,} events on {events // writes_per_record:,} records:"
    table = "\n".join(["| what | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)])
    click.echo(f"{head}\n\n{table}")
    if publish:
        before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        text = f"{before}{BEGIN}\n{head}\n\n{table}\n{END}{after}"
        DOCUMENT.write_text(text, "utf-8")


def fill(bench: Bench, port: int, events: int, writes_per_record: int) -> None:
    pushes = Workload(seed=9).history(
        events, LIMITS.changesets_per_push_max, writes_per_record=writes_per_record
    )
    path = f"/v1/spaces/{SPACE}/changesets"
    fetch(port, (request("POST", path, push_of(items)) for items in pushes))
    bench.settle(SPACE)


def replica_of(url: str, path: Path) -> Replica:
    return Replica(path, space=SPACE, server=HttpServer(url, SPACE))


def first_sync(url: str, data: Path, way: str) -> tuple[str, str]:
    """Times a new device until it has all records."""
    usual = synchroniser.SNAPSHOT_EVENTS_MIN
    if way == "events":
        synchroniser.SNAPSHOT_EVENTS_MIN = 10**12
    try:
        with replica_of(url, data / f"{way}.db") as replica:
            started = time.perf_counter()
            replica.sync()
            seconds = time.perf_counter() - started
            status = replica.status()
            count = len(replica.collection(COLLECTION))
    finally:
        synchroniser.SNAPSHOT_EVENTS_MIN = usual
    megabytes = status.bytes_received / 1e6
    return f"first sync by {way}", f"{count:,} records, {seconds:.1f} s, {megabytes:.1f} MB"


def field_edit(url: str, data: Path) -> list[tuple[str, str]]:
    """Edits one field until a second device shows it. Returns medians of the bodies, in bytes."""
    sent, acknowledged, asked, received = [], [], [], []
    with replica_of(url, data / "snapshot.db") as phone, replica_of(url, data / "events.db") as tab:
        tab.sync()
        record = next(iter(phone.collection(COLLECTION).query(limit=1)))
        for n in range(EDITS):
            before, other = phone.status(), tab.status()
            phone.collection(COLLECTION).update(record.id, done=bool(n % 2))
            phone.sync()
            tab.sync()
            after, later = phone.status(), tab.status()
            sent.append(after.bytes_sent - before.bytes_sent)
            acknowledged.append(after.bytes_received - before.bytes_received)
            asked.append(later.bytes_sent - other.bytes_sent)
            received.append(later.bytes_received - other.bytes_received)
    medians = [int(statistics.median(each)) for each in (sent, acknowledged, asked, received)]
    return [
        ("a field edit, pushed", f"{medians[0]} bytes sent, {medians[1]} received"),
        ("... reaching a second device", f"{medians[2]} bytes sent, {medians[3]} received"),
    ]


def local_write(data: Path) -> tuple[str, str]:
    """Times a record that is made offline, flushed to the disk, and shown."""
    server = HttpServer("http://127.0.0.1:9", SPACE)
    times = []
    with Replica(data / "offline.db", space=SPACE, server=server) as replica:
        tasks = replica.collection(COLLECTION)
        for n in range(LOCAL_WRITES):
            started = time.perf_counter()
            tasks.create(title="Buy milk", priority=n, done=False)
            times.append((time.perf_counter() - started) * 1_000)
    p99 = statistics.quantiles(times, n=100)[98]
    return "a local write, offline", f"p50 {statistics.median(times):.2f} ms, p99 {p99:.2f} ms"


if __name__ == "__main__":
    main()
