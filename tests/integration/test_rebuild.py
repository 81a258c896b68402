"""A rebuild: beside the live table, resumable, compared, swapped in while clients read."""

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
from foldlog.domain.merge import Record
from foldlog.domain.ports import RecordsQuery
from foldlog.infrastructure.postgres.master import projection as master_module
from foldlog.infrastructure.postgres.master.projection import Known, MasterProjection
from foldlog.infrastructure.postgres.rebuild import projector as projector_module
from foldlog.infrastructure.postgres.rebuild import rebuild as rebuild_module
from foldlog.infrastructure.postgres.rebuild.projector import Stopped
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
    return Rebuilder(datastore, MasterProjection(), turn_events=7)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Short logs shall be rebuilt in many steps too, not all under the final lock."""
    monkeypatch.setattr(rebuild_module, "CATCH_UP_EVENTS", 5)


def without_generation(rows: list[tuple]) -> list[tuple]:
    return [(row[0], *row[2:]) for row in rows]


def test_a_rebuilt_table_is_the_live_one(stores, rebuilder):
    """Row by row the same, of a new generation, and nothing is left of the old one."""
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
        datastore, MasterProjection(), report=lambda *args: reports.append(args), turn_events=10
    )
    rebuilder.rebuild("s")
    assert reports[0] == ("s", 10, 60) and reports[-1] == ("s", 60, 60)


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("UPDATE records SET fields = '{\"x\":\"forged\"}' WHERE id = 'a'", "records"),
        ("UPDATE records SET writes = '[[1,null,0,0,[]]]' WHERE id = 'a'", "records"),
        ("DELETE FROM records WHERE id = 'a'", "records"),
        (
            "INSERT INTO records SELECT space, generation, collection, 'ghost', fields, "
            "is_deleted, seq, created_seq, last_modified, writes, deleted, touched_seq, "
            "touched_by, touched_seq_other FROM records WHERE id = 'a'",
            "records",
        ),
        ("UPDATE conflicts SET document = '{}' WHERE number = 0", "conflicts"),
        ("DELETE FROM local_ids", "local_ids"),
    ],
)
def test_verify_tells_the_first_difference(stores, database, rebuilder, change, table):
    """It says which row of what, keeps the live table, and a rebuild without it mends it."""
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


def test_a_lagging_live_table_is_no_difference(stores, rebuilder):
    """Both are brought to the same seq before they are compared."""
    head = random_history(stores, "s", seed=3)
    rebuilder.rebuild("s", verify=True)
    assert_equals_fresh_fold(stores, "s", head)


def test_an_interrupted_rebuild_goes_on_where_it_stopped(stores, datastore, rebuilder):
    """Progress is the new generation's own position; --fresh begins again."""
    head = random_history(stores, "s", seed=4)
    stores.project()

    class Killed(BaseException):
        pass

    def die_at_21(_, position, __):
        if position == 21:
            raise Killed

    def interrupt() -> None:
        with pytest.raises(Killed):
            Rebuilder(datastore, MasterProjection(), report=die_at_21, turn_events=7).rebuild("s")

    interrupt()
    assert [(s.generation, s.position, s.is_live) for s in master_status(datastore)] == [
        (1, head, True),
        (2, 21, False),
    ]
    assert rebuilder.rebuild("s", verify=True).resumed_at == 21
    interrupt()
    assert rebuilder.rebuild("s", fresh=True, verify=True).resumed_at == 0


def test_what_other_code_began_is_not_gone_on_with(stores, datastore, rebuilder):
    """Half a table of another merge rule would be neither the one nor the other."""
    random_history(stores, "s", seed=4)
    with datastore.committed() as cursor:
        cursor.execute(
            "INSERT INTO projections (space, projection, generation, position, is_live, "
            "fold_version) VALUES ('s', 'master', 2, 30, false, 0)"
        )
    assert rebuilder.rebuild("s", verify=True).resumed_at == 0


def test_clients_read_while_it_is_rebuilt_and_swapped(stores, datastore, rebuilder):
    """Every page that is read meanwhile is a whole table of its seq."""
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
    """Both tables are compared at one seq, however quickly the log grows meanwhile."""
    stores.push("s", push_of(changeset(put("0", n=0))))
    done = Event()

    def push() -> None:
        n = 0
        while not done.is_set():
            n += 1
            stores.push("s", push_of(changeset(put(str(n % 50), n=n))))
            if n % 7 == 0:
                stores.projector.project_or_stop("s")

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
    """A second one is told so, and begins nothing; another space's may go on beside it."""
    random_history(stores, "s", seed=9)
    random_history(stores, "t", seed=9)
    told = []

    def begin_another(space, position, head):
        if position < head:
            Rebuilder(datastore, MasterProjection()).rebuild("t")
            with pytest.raises(OperatorError, match="under way") as caught:
                Rebuilder(datastore, MasterProjection()).rebuild("s", fresh=True)
            told.append(caught.value)

    Rebuilder(datastore, MasterProjection(), report=begin_another, turn_events=20).rebuild(
        "s", verify=True
    )
    assert told


def test_an_event_that_cannot_be_processed_stops_the_rebuild(database, stores, rebuilder):
    """The live table stays, as it is."""
    random_history(stores, "s", seed=5, pushes=10)
    stores.project()
    poison(database, "s", 11)
    before = table_of(stores, "s")
    with pytest.raises(Stopped, match="seq 11"):
        rebuilder.rebuild("s")
    assert table_of(stores, "s") == before


def test_a_space_that_is_not_there(rebuilder):
    with pytest.raises(UnknownSpace):
        rebuilder.rebuild("nowhere")


SLOW_REBUILD = """
import sys, time
from foldlog.infrastructure.postgres.rebuild import projector, rebuild
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.master.projection import MasterProjection
rebuild.CATCH_UP_EVENTS = 5
projector.BATCH_EVENTS = 2

def report(space, position, head):
    print(position, flush=True)
    time.sleep(0.02)

rebuild.Rebuilder(Datastore(sys.argv[1]), MasterProjection(), report=report, turn_events=5
).rebuild("s", verify=True)
"""


def test_kill_9_of_a_rebuild_loses_only_its_last_step(database, stores):
    """Killed at whatever moment, again and again, it ends with the right table."""
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
        assert reported[0] > positions[-1]  # it goes on, it does not begin again
        positions += reported
    assert process.returncode == 0 and kills >= 3
    assert [line.generation for line in master_status(stores.datastore)] == [2]
    assert_equals_fresh_fold(stores, "s", head)


def test_owner_may_drop_a_projection_by_hand(database, stores, rebuilder):
    """Projections, other than the log, are there to be dropped: everything comes back."""
    head = random_history(stores, "s", seed=7)
    stores.project()
    with psycopg.connect(database) as conn:
        conn.execute("TRUNCATE records, conflicts, local_ids")
    rebuilder.rebuild("s")
    assert_equals_fresh_fold(stores, "s", head)


@pytest.mark.parametrize("known_bytes", [0, 600, 1_500, 2**20])
@pytest.mark.parametrize("batch_events", [1, 4])
def test_what_is_kept_in_memory_does_not_matter(
    stores, datastore, monkeypatch, known_bytes, batch_events
):
    """However little of it is kept, what was forgotten is read again, and the table is the same."""
    head = random_history(stores, "s", seed=8, pushes=120)
    stores.project()
    monkeypatch.setattr(projector_module, "BATCH_EVENTS", batch_events)
    monkeypatch.setattr(master_module.Known.__init__, "__kwdefaults__", {"bytes_max": known_bytes})
    Rebuilder(datastore, MasterProjection(), turn_events=9).rebuild("s", verify=True)
    assert_equals_fresh_fold(stores, "s", head)


def test_a_turn_ends_when_it_has_written_much(stores, datastore, monkeypatch):
    """What is not committed is kept in memory, so there must not be too much of it."""
    random_history(stores, "s", seed=8, pushes=40)
    monkeypatch.setattr(projector_module, "BATCH_EVENTS", 4)
    monkeypatch.setattr(projector_module, "WRITTEN_BYTES", 1)
    reports = []
    Rebuilder(datastore, MasterProjection(), report=lambda *args: reports.append(args[1])).rebuild(
        "s", verify=True
    )
    assert reports == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]


def test_known_records_are_bounded_and_right_at_their_position():
    """The ones touched lately stay; at another position nothing is known."""
    known = Known(0, bytes_max=400)
    records = {("tasks", str(n)): Record("tasks", str(n)) for n in range(1, 9)}
    for n, (key, record) in enumerate(records.items(), start=1):
        assert known.find({key}) == {}
        known.note({key: record}, 100, n)
        assert known.find(records.keys()).keys() >= {key}
        known.committed()
        assert len(known.find(records.keys())) <= 6
    assert not known.is_all and known.find({("tasks", "8")}) and not known.find({("tasks", "1")})
    known.forget(3)
    assert (known.position, known.is_all, known.find(records.keys())) == (3, False, {})


def test_what_is_not_committed_is_known_whatever_it_takes():
    known = Known(0, bytes_max=1)
    for n in range(1, 5):
        known.note({("tasks", str(n)): Record("tasks", str(n))}, 1_000, n)
    assert len(known.find({("tasks", str(n)) for n in range(1, 5)})) == 4
    assert known.bytes_uncommitted == 4_000


def test_a_generation_that_was_brought_on_by_another_is_read_anew(stores, datastore):
    """Its lock was lost on the way, say: what is known of an older position is not believed."""
    head = random_history(stores, "s", seed=8)
    rebuilder = Rebuilder(datastore, MasterProjection(), turn_events=9)
    generation, start = rebuilder._create("s")
    known = Known(start)
    rebuilder._turn("s", generation, known)
    rebuilder._turn("s", generation, Known(9))
    rebuilder._turn("s", generation, known)
    assert known.position == 27
    assert rebuilder.rebuild("s", verify=True).resumed_at == 27
    assert_equals_fresh_fold(stores, "s", head)


@pytest.mark.parametrize("seq", [11, 24, 40])
def test_all_before_an_event_that_cannot_be_processed_is_rebuilt(
    database, stores, datastore, monkeypatch, seq
):
    """In however large a turn it is: the next rebuild, by code that can, goes on right there."""
    monkeypatch.setattr(projector_module, "BATCH_EVENTS", 4)
    random_history(stores, "s", seed=5, pushes=seq - 1)
    poison(database, "s", seq)
    random_history(stores, "s", seed=6, pushes=20)
    with pytest.raises(Stopped, match=f"seq {seq}"):
        Rebuilder(datastore, MasterProjection(), turn_events=50).rebuild("s")
    assert [(s.generation, s.position) for s in master_status(datastore)] == [(1, 0), (2, seq - 1)]
