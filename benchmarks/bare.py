"""The bare limits of the machine: single tasks of the service, done in the fewest steps.

The ratio of a row to its limit shows how much the rest of the service costs.
"""

from __future__ import annotations

import time
from itertools import count, cycle, islice

from psycopg.rows import tuple_row

from .bench import Bench
from .connection import request
from .errors import BenchmarkFailed
from .figures import Figure
from .load import Load, drive

INSERT = "INSERT INTO bare_log VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
COPY = "COPY bare_log FROM STDIN (FORMAT binary)"
COLUMN_TYPES = ["text", "int8", "text", "bytea", "uuid", "uuid", "int8", "text[]", "bytea", "bytea"]

SELECT_PAGE = """
SELECT originator_version, state
  FROM events
 WHERE originator_id = %s
   AND originator_version > %s
 ORDER BY originator_version
 LIMIT %s
"""

COPY_RECORDS_OUT = """
COPY (
    SELECT r.*
      FROM records r
      JOIN projections p
     USING (space, generation)
     WHERE space = 'log'
       AND projection = 'master'
       AND is_live
     ORDER BY collection, id
) TO STDOUT (FORMAT binary)
"""


def figure_of(load: Load) -> Figure:
    return Figure(
        load.answers_per_second,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        generator_cpu=load.generator_cpu,
    )


def echo(bench: Bench, path: str, bodies: list[bytes], connections: int) -> Figure:
    """Echoes bodies with the same server: HTTP alone."""
    return figure_of(
        drive(
            bench.echo_port,
            [request("POST", path, body) for body in bodies],
            connections=connections,
            seconds=bench.scale.seconds,
            again=True,
        )
    )


def insert(bench: Bench) -> Figure:
    """Inserts rows into a table that has only its key, a commit each, on one connection."""
    rows = cycle(bench.rows)
    bench.bare.execute("TRUNCATE bare_log")
    bench.checkpoint()
    with bench.bare.cursor() as cursor:
        deadline = time.perf_counter() + bench.scale.seconds
        for seq in count(1):
            space, _, *rest = next(rows)
            cursor.execute(INSERT, (space, seq, *rest), prepare=True, binary=True)
            if time.perf_counter() >= deadline:
                return Figure(seq / bench.scale.seconds)
    raise AssertionError("count never ends")


def copy(bench: Bench, rows_per_commit: int) -> Figure:
    """Copies rows with COPY, many in each commit, on one connection."""
    rows = cycle(bench.rows)
    bench.bare.execute("TRUNCATE bare_log")
    bench.checkpoint()
    seq = count(1)
    with bench.bare.cursor() as cursor:
        started = time.perf_counter()
        commits = 0
        while time.perf_counter() < started + bench.scale.seconds:
            with cursor.copy(COPY) as copying:
                copying.set_types(COLUMN_TYPES)
                for space, _, *rest in islice(rows, rows_per_commit):
                    copying.write_row((space, next(seq), *rest))
            commits += 1
        return Figure(commits * rows_per_commit / (time.perf_counter() - started))


def select_pages(bench: Bench) -> Figure:
    """Reads pages of the log with the simplest statement, and joins their bytes."""
    log, page, after, size = bench.log, bench.scale.page, 0, 0
    with bench.database.cursor(row_factory=tuple_row, binary=True) as cursor:
        started = time.perf_counter()
        while True:
            rows = cursor.execute(SELECT_PAGE, (log, after, page), prepare=True).fetchall()
            if not rows:
                break
            size += len(b"[%b]" % b",".join([state for _, state in rows]))
            after = rows[-1][0]
        seconds = time.perf_counter() - started
    if after != bench.scale.events:
        raise BenchmarkFailed(f"{after} events instead of {bench.scale.events}")
    return Figure(after / seconds, bytes_each=size / after)


def copy_records(bench: Bench) -> Figure:
    """Copies the master table of a rebuild as bytes into an empty table with its indexes.

    The figure is in events a second: the speed of a rebuild whose folding is free.
    """
    assert bench.log
    with bench.database.cursor().copy(COPY_RECORDS_OUT) as reading:
        pieces = [bytes(piece) for piece in reading]
    bench.bare.execute("TRUNCATE records")
    bench.checkpoint()
    started = time.perf_counter()
    with bench.bare.cursor().copy("COPY records FROM STDIN (FORMAT binary)") as copying:
        for piece in pieces:
            copying.write(piece)
    return Figure(bench.scale.events / (time.perf_counter() - started))
