"""Reads of the past: one record and a page of a collection, as of a seq.

They are measured on a log, and on one with ten times as many events on the same records.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

from .bench import Bench, decode
from .cells import Row
from .connection import Answer, fetch, request
from .errors import BenchmarkFailed
from .figures import Figure
from .filling import announce, fill
from .growth import SETTLE_SECONDS_MAX
from .workload import COLLECTION

#: events on each record of the longer log
EVENTS_PER_RECORD = 100
REQUESTS = 200
PAGE = 500
#: positions of moments in the log; at the earliest one all records exist
MOMENTS = {"early": 0.1, "in the middle": 0.5, "at the end": 1.0}

SELECT_IDS = """
SELECT id
  FROM records
 WHERE space = %s
 ORDER BY id
 LIMIT 10000
"""


def long_log(bench: Bench) -> str:
    return bench.once(_long_log)


def short_log(bench: Bench) -> str:
    return bench.once(_short_log)


def _long_log(bench: Bench) -> str:
    return _log(bench, bench.scale.grown)


def _short_log(bench: Bench) -> str:
    return _log(bench, bench.scale.grown // 10)


def _log(bench: Bench, events: int) -> str:
    space = bench.new_space()
    records = bench.scale.grown // EVENTS_PER_RECORD
    fill(bench.url, space, events, writes_per_record=events // records)
    announce(bench.database, space, events)
    bench.settle(space, SETTLE_SECONDS_MAX)
    bench.database.execute("VACUUM ANALYZE")
    return space


def one(bench: Bench, log: Callable[[Bench], str]) -> Figure:
    """Reads a random record as of a random seq at which the record exists."""
    space = log(bench)
    head, pick = bench.head(space), random.Random(1)
    ids = [id for (id,) in bench.database.execute(SELECT_IDS, (space,)).fetchall()]
    # All records are created before the first change.
    first = bench.scale.grown // EVENTS_PER_RECORD
    asked = [(pick.choice(ids), pick.randint(first, head)) for _ in range(REQUESTS)]
    path = f"/v1/spaces/{space}/records/{COLLECTION}/"
    answers = list(_timed(bench, [f"{path}{id}?as_of={seq}" for id, seq in asked]))
    for (id, seq), (_, answer) in zip(asked, answers, strict=True):
        record = decode(answer.body)["record"]
        if record["id"] != id or record["seq"] > seq:
            raise BenchmarkFailed(f"{id} as of {seq} is another one")
    return _figure([seconds for seconds, _ in answers], head)


def page(bench: Bench, log: Callable[[Bench], str], moment: float) -> Figure:
    """Reads a page of 500 records from a random place of the collection."""
    space = log(bench)
    head = bench.head(space)
    as_of = round(head * moment)
    path = f"/v1/spaces/{space}/records?collection={COLLECTION}&as_of={as_of}&limit={PAGE}"
    times: list[float] = []
    cursor: str | None = None
    for _ in range(REQUESTS):
        [(seconds, answer)] = _timed(bench, [path + (f"&cursor={cursor}" if cursor else "")])
        found = decode(answer.body)
        if found["as_of"] != as_of or not found["records"]:
            raise BenchmarkFailed(f"the page as of {as_of} is another one")
        cursor = found["cursor"]
        times.append(seconds)
    return _figure(times, head)


def _timed(bench: Bench, paths: list[str]) -> Iterator[tuple[float, Answer]]:
    for path in paths:
        data = request("GET", path)
        started = time.perf_counter()
        [answer] = fetch(bench.port, [data])
        yield time.perf_counter() - started, answer


def _figure(times: list[float], events: int) -> Figure:
    p50, p99 = (statistics.quantiles(times, n=100)[at - 1] * 1_000 for at in (50, 99))
    return Figure(p50, p50_ms=p50, p99_ms=p99, note=f"{events:,} events")


def _row(title: str, measure: Callable[..., Figure]) -> Row:
    return Row(
        "asof",
        title,
        "ms",
        partial(measure, log=long_log),
        {"a log a tenth as long": partial(measure, log=short_log)},
        less_is_better=True,
        is_bare=False,
        is_long=True,
    )


ROWS = (
    _row("one record, as of any seq", one),
    *(
        _row(f"a page of {PAGE}, as of a seq {where}", partial(page, moment=moment))
        for where, moment in MOMENTS.items()
    ),
)
