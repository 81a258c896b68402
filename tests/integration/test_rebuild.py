"""A rebuild fills a second generation, resumes, compares, and swaps while clients read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from threading import Event, Thread

import psycopg
import pytest

from foldlog.domain.errors import OperatorError, UnknownSpace
from foldlog.domain.ports import RecordsQuery
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.master.record_cache import RECORD_BYTES, RecordCache
from foldlog.infrastructure.postgres.master.stored_form import StoredRecord
from foldlog.infrastructure.postgres.rebuild import batches
from foldlog.infrastructure.postgres.rebuild import rebuild as rebuild_module
from foldlog.infrastructure.postgres.rebuild.batches import Halted
from foldlog.infrastructure.postgres.rebuild.generations import Generations
from foldlog.infrastructure.postgres.rebuild.rebuild import RebuildDiffers, Rebuilder
from tests.helpers import changeset, push_of, put
from tests.integration.test_projector import (
    assert_equals_fresh_fold,
    master_status,
    poison,
    random_history,
    table_of,
)


@pytest.fixture
def rebuilder(datastore):
    return Rebuilder(datastore, MasterProjection(), batch_events=7)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Makes rebuilds of short logs take many batches before the final lock."""
    monkeypatch.setattr(rebuild_module, "CATCH_UP_EVENTS", 5)


def without_generation(rows: list[tuple]) -> list[tuple]:
    return [(row[0], *row[2:]) for row in rows]


def test_a_rebuilt_table_is_the_live_one(stores, rebuilder):
    """All rows are equal, they have a new generation, and the old one is deleted."""
    head = random_history(stores, "s", seed=1)
    stores.project()
    before = table_of(stores, "s")

    rebuilt = rebuilder.rebuild("s", verify=True)

    assert without_generation(table_of(stores, "s")) == without_generation(before)
    assert (rebuilt.events, rebuilt.generation, rebuilt.is_compared) == (head, 2, True)
    with stores.datastore.rows() as cursor:
        master = "projections WHERE projection = 'master'"
        for table in (*MasterProjection.tables, master):
            cursor.execute(f"SELECT DISTINCT generation FROM {table}")
            assert cursor.fetchall() in ([(2,)], []), table
    assert_equals_fresh_fold(stores, "s", head)


def test_it_reports_progress(stores, datastore):
    random_history(stores, "s", seed=1)
    reports = []
    rebuilder = Rebuilder(
        datastore, MasterProjection(), report=lambda *args: reports.append(args), batch_events=10
    )
    rebuilder.rebuild("s")
    assert reports[0] == ("s", 10, 60) and reports[-1] == ("s", 60, 60)


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("UPDATE records SET own_fields = '{\"x\":\"forged\"}' WHERE id = 'a'", "records"),
        ("UPDATE records SET writes = '[[1,null,0,0,[]]]' WHERE id = 'a'", "records"),
        ("DELETE FROM records WHERE id = 'a'", "records"),
        (
            "INSERT INTO records SELECT space, generation, collection, 'ghost', own_fields, "
            "is_deleted, seq, created_seq, last_modified, writes, deleted, touched_seq, "
            "touched_by, touched_seq_other FROM records WHERE id = 'a'",
            "records",
        ),
        ("UPDATE conflicts SET entry = '{}' WHERE number = 0", "conflicts"),
        ("DELETE FROM local_ids", "local_ids"),
    ],
)
def test_verify_tells_the_first_difference(stores, database, rebuilder, change, table):
    """The error names table and row, and the live table stays. A plain rebuild repairs it."""
    head = random_history(stores, "s", seed=2)
    stores.project()
    with psycopg.connect(database) as conn:
        assert conn.execute(change).rowcount > 0
    before = table_of(stores, "s")

    with pytest.raises(RebuildDiffers) as caught:
        rebuilder.rebuild("s", verify=True)

    assert caught.value.extra["table"] == table
    assert table_of(stores, "s") == before
    rebuilder.rebuild("s")
    assert_equals_fresh_fold(stores, "s", head)
    rebuilder.rebuild("s", verify=True)


def test_a_lagging_live_table_is_compared_at_the_same_seq(stores, rebuilder):
    """Both generations reach the same seq before the comparison."""
    head = random_history(stores, "s", seed=3)
    rebuilder.rebuild("s", verify=True)
    assert_equals_fresh_fold(stores, "s", head)


def test_an_interrupted_rebuild_resumes(stores, datastore, rebuilder):
    """It resumes at the position of the new generation. --fresh starts from 0."""
    head = random_history(stores, "s", seed=4)
    stores.project()

    class Killed(BaseException):
        pass

    def die_at_21(_, position, __):
        if position == 21:
            raise Killed

    def interrupt() -> None:
        with pytest.raises(Killed):
            Rebuilder(datastore, MasterProjection(), report=die_at_21, batch_events=7).rebuild("s")

    interrupt()
    assert [(s.generation, s.position, s.is_live) for s in master_status(datastore)] == [
        (1, head, True),
        (2, 21, False),
    ]
    assert rebuilder.rebuild("s", verify=True).resumed_at == 21
    interrupt()
    assert rebuilder.rebuild("s", fresh=True, verify=True).resumed_at == 0


def test_an_unfinished_generation_of_another_version_is_dropped(stores, database, rebuilder):
    """Two merge rules must not mix in one table."""
    random_history(stores, "s", seed=4)
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO projections (space, projection, generation, position, is_live, "
            "fold_version) VALUES ('s', 'master', 2, 30, false, 0)"
        )
    assert rebuilder.rebuild("s", verify=True).resumed_at == 0


def test_clients_read_while_it_is_rebuilt_and_swapped(stores, datastore, rebuilder):
    """Each page that clients read during the rebuild is the whole table at its seq."""
    for n in range(30):
        stores.push("s", push_of(changeset(put(str(n % 10), n=n))))
    stores.project()
    done, wrong = Event(), []

    def read() -> None:
        while not done.is_set():
            page = stores.page("s", RecordsQuery(100))
            if len(page.records) != 10 or page.projected < 30:
                wrong.append(page)

    reader = Thread(target=read)
    reader.start()
    try:
        for n in range(30, 50):
            stores.push("s", push_of(changeset(put(str(n % 10), n=n))))
            rebuilder.rebuild("s", verify=True)
    finally:
        done.set()
        reader.join()
    assert not wrong
    assert_equals_fresh_fold(stores, "s", 50)


def test_verify_holds_while_pushes_go_on(stores, datastore):
    """Both tables are compared at one seq while the log grows."""
    stores.push("s", push_of(changeset(put("0", n=0))))
    done = Event()

    def push() -> None:
        n = 0
        while not done.is_set():
            n += 1
            stores.push("s", push_of(changeset(put(str(n % 50), n=n))))
            if n % 7 == 0:
                stores.projector.project_or_halt("s")

    pusher = Thread(target=push)
    pusher.start()
    try:
        rebuilder = Rebuilder(datastore, MasterProjection())
        for _ in range(8):
            rebuilder.rebuild("s", verify=True)
    finally:
        done.set()
        pusher.join()


def test_one_rebuild_of_a_space_at_a_time(stores, datastore):
    """A second rebuild of the same space is refused at once. Another space's rebuild runs."""
    random_history(stores, "s", seed=9)
    random_history(stores, "t", seed=9)
    refusals = []

    def begin_another(space, position, head):
        if position < head:
            Rebuilder(datastore, MasterProjection()).rebuild("t")
            with pytest.raises(OperatorError, match="is running") as caught:
                Rebuilder(datastore, MasterProjection()).rebuild("s", fresh=True)
            refusals.append(caught.value)

    Rebuilder(datastore, MasterProjection(), report=begin_another, batch_events=20).rebuild(
        "s", verify=True
    )
    assert refusals


def test_an_unreadable_event_stops_the_rebuild(database, stores, rebuilder):
    """The live table stays unchanged."""
    random_history(stores, "s", seed=5, pushes=10)
    stores.project()
    poison(database, "s", 11)
    before = table_of(stores, "s")
    with pytest.raises(Halted, match="seq 11"):
        rebuilder.rebuild("s")
    assert table_of(stores, "s") == before


def test_an_unknown_space(rebuilder):
    with pytest.raises(UnknownSpace):
        rebuilder.rebuild("nowhere")


SLOW_REBUILD = """
import sys, time
from foldlog.infrastructure.postgres.rebuild import batches, rebuild
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.master.projection import MasterProjection
rebuild.CATCH_UP_EVENTS = 5
batches.PAGE_EVENTS = 2

def report(space, position, head):
    print(position, flush=True)
    time.sleep(0.02)

rebuild.Rebuilder(Datastore(sys.argv[1]), MasterProjection(), report=report, batch_events=5
).rebuild("s", verify=True)
"""


def test_kill_9_of_a_rebuild_loses_only_its_last_batch(database, stores):
    """Repeated kills at any moment still lead to the right table."""
    head = random_history(stores, "s", seed=6, pushes=90)
    stores.project()
    kills, positions = 0, [0]
    for _ in range(50):
        with subprocess.Popen(
            [sys.executable, "-c", SLOW_REBUILD, database], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            reported = [int(line) for line in (process.stdout.readline() for _ in range(5)) if line]
            if reported and reported[-1] < head:
                time.sleep(0.005)
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        if process.returncode == 0:
            break
        assert reported[0] > positions[-1]  # it resumed
        positions += reported
    assert process.returncode == 0 and kills >= 3
    assert [line.generation for line in master_status(stores.datastore)] == [2]
    assert_equals_fresh_fold(stores, "s", head)


def test_owner_may_drop_a_projection_by_hand(database, stores, rebuilder):
    """A rebuild restores projections from the log, so their owner may drop them."""
    head = random_history(stores, "s", seed=7)
    stores.project()
    with psycopg.connect(database) as conn:
        conn.execute("TRUNCATE records, conflicts, local_ids")
    rebuilder.rebuild("s")
    assert_equals_fresh_fold(stores, "s", head)


@pytest.mark.parametrize("cache_bytes", [0, 600, 1_500, 2**20])
@pytest.mark.parametrize("page_events", [1, 4])
def test_all_cache_sizes_give_the_same_table(
    stores, datastore, monkeypatch, cache_bytes, page_events
):
    """Evicted records are read again from the database."""
    head = random_history(stores, "s", seed=8, pushes=120)
    stores.project()
    monkeypatch.setattr(batches, "PAGE_EVENTS", page_events)
    monkeypatch.setattr(RecordCache.__init__, "__kwdefaults__", {"bytes_max": cache_bytes})
    monkeypatch.setattr(MasterProjection.new_cache, "__kwdefaults__", {"bytes_max": cache_bytes})
    Rebuilder(datastore, MasterProjection(), batch_events=9).rebuild("s", verify=True)
    assert_equals_fresh_fold(stores, "s", head)


def test_a_batch_ends_at_a_limit_of_written_bytes(stores, datastore, monkeypatch):
    """Uncommitted records stay in memory, so their size must be limited."""
    random_history(stores, "s", seed=8, pushes=40)
    monkeypatch.setattr(batches, "PAGE_EVENTS", 4)
    monkeypatch.setattr(batches, "WRITTEN_BYTES", 1)
    reports = []
    Rebuilder(datastore, MasterProjection(), report=lambda *args: reports.append(args[1])).rebuild(
        "s", verify=True
    )
    assert reports == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]


def test_the_record_cache_is_bounded_and_valid_at_its_position():
    """Recent records stay. A reset to another position empties the cache."""
    cache = RecordCache(0, bytes_max=4 * RECORD_BYTES)
    records = {("tasks", str(n)): StoredRecord("tasks", str(n)) for n in range(1, 9)}
    for n, (key, record) in enumerate(records.items(), start=1):
        assert cache.find(key) is None
        cache.add_changed(key, record)
        assert cache.find(key) is record
        assert sum(cache.find(key) is not None for key in records) <= 6
        if n == 4:
            assert cache.is_complete
    assert not cache.is_complete
    assert cache.find(("tasks", "8")) and not cache.find(("tasks", "1"))
    assert ("tasks", "1") in cache.dropped and ("tasks", "8") not in cache.dropped
    cache.on_commit()
    assert not cache.dropped
    cache.reset(3)
    assert (cache.position, cache.is_complete) == (3, False)
    assert not any(map(cache.find, records))


def test_a_cache_of_an_older_position_is_emptied(stores, datastore):
    """Another process may have advanced the generation, for example after a lost lock."""
    head = random_history(stores, "s", seed=8)
    rebuilder = Rebuilder(datastore, MasterProjection(), batch_events=9)
    number, start = Generations(datastore, MasterProjection(), "s").create()
    cache = RecordCache(start)
    rebuilder._project_batch("s", number, cache)
    rebuilder._project_batch("s", number, RecordCache(9))
    rebuilder._project_batch("s", number, cache)
    assert cache.position == 27
    assert rebuilder.rebuild("s", verify=True).resumed_at == 27
    assert_equals_fresh_fold(stores, "s", head)


@pytest.mark.parametrize("seq", [11, 24, 40])
def test_all_events_before_an_unreadable_one_are_rebuilt(
    database, stores, datastore, monkeypatch, seq
):
    """Bisection reaches it in a batch of any size. The next rebuild resumes there."""
    monkeypatch.setattr(batches, "PAGE_EVENTS", 4)
    random_history(stores, "s", seed=5, pushes=seq - 1)
    poison(database, "s", seq)
    random_history(stores, "s", seed=6, pushes=20)
    with pytest.raises(Halted, match=f"seq {seq}"):
        Rebuilder(datastore, MasterProjection(), batch_events=50).rebuild("s")
    assert [(s.generation, s.position) for s in master_status(datastore)] == [(1, 0), (2, seq - 1)]
