"""The projector applies each event once, also after a crash. A space that fails halts alone."""

from __future__ import annotations

import random
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from threading import Thread
from types import SimpleNamespace

import psycopg
import pytest
from eventsourcing.persistence import OperationalError
from msgspec.json import decode, encode

from foldlog.domain.merge import conflict_document, view_of
from foldlog.domain.merkle import TreeBuilder
from foldlog.domain.ports import RecordsQuery
from foldlog.domain.proofs import leaf_hash
from foldlog.domain.upcasts import UPCASTER
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.wakeups import Announcer, Wakeups
from foldlog.infrastructure.postgres.master import conflict_rows, record_rows
from foldlog.infrastructure.postgres.master import projection as master_module
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.master.record_cache import RecordCache
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable
from foldlog.infrastructure.postgres.projections import projection_named
from foldlog.infrastructure.postgres.rebuild import batches
from foldlog.infrastructure.postgres.rebuild import projector as projector_module
from foldlog.infrastructure.postgres.rebuild.projector import Projector
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.status import gauges, status
from foldlog.scripts.commands.replay import fold_all, sorted_records
from tests.helpers import A, B, C, add, changeset, delete, kept_conflict, new_id, push_of, put


def random_history(stores, space: str, seed: int, pushes: int = 60) -> int:
    """Pushes concurrent changes of three devices to a few records. Returns the head."""
    rng = random.Random(seed)
    head = 0
    for _ in range(pushes):
        ops = [
            rng.choice(
                [
                    lambda id: put(id, title=rng.choice("xyz"), n=rng.randrange(3)),
                    lambda id: add(id, n=1),
                    lambda id: delete(id),
                    lambda id: {"op": "put", "collection": "notes", "local_id": id, "fields": {}},
                ]
            )(rng.choice("abc"))
            for _ in range(rng.randrange(1, 4))
        ]
        made_at = f"2026-11-23T0{rng.randrange(10)}:00:00Z"
        one = changeset(*ops, base=rng.randrange(head + 1), made_at=made_at)
        head = stores.push(space, push_of(one, device=rng.choice([A, B, C]))).head
    return head


def table_of(stores, space: str) -> list[tuple]:
    """Returns all rows of the live generation, as stored."""
    with stores.datastore.rows() as cursor:
        return cursor.execute(
            "SELECT r.* FROM records r JOIN projections p USING (space, generation) "
            "WHERE space = %s AND p.projection = 'master' AND p.is_live ORDER BY collection, id",
            (space,),
        ).fetchall()


def master_status(datastore, space: str | None = None):
    """Returns the status of the master table without the other projections."""
    return [line for line in status(datastore, space) if line.projection == "master"]


def assert_equals_fresh_fold(stores, space: str, head: int) -> None:
    """Compares the master table and the ledger with a fold of the log from 1 to head."""
    states = [entry.state for entry in stores.entries(space, through=head)]
    records, conflicts = fold_all(states)
    documents, cursor = [], None
    while True:
        query = RecordsQuery(1_000, changed_after=0, at_least=head, cursor=cursor)
        page = stores.page(space, query)
        documents += page.records
        cursor = page.cursor
        if cursor is None:
            break
    found = sorted((decode(doc) for doc in documents), key=lambda r: (r["collection"], r["id"]))
    assert found == [decode(encode(view_of(record))) for record in sorted_records(records)]
    ledger = stores.conflicts(space, limit=1_000, cursor=None).conflicts
    assert [kept_conflict(doc) for doc in ledger] == [
        decode(encode(conflict_document(conflict))) for conflict in conflicts
    ]


@pytest.mark.parametrize("batch_events", [1, 2, 7, 1_000])
@pytest.mark.parametrize("page_events", [1, 3, 1_000])
def test_all_batch_sizes_give_the_same_table(
    datastore, stores, monkeypatch, batch_events, page_events
):
    """The table is the fold of the log for any size of transactions and pages."""
    monkeypatch.setattr(batches, "PAGE_EVENTS", page_events)
    head = random_history(stores, "s", seed=batch_events)
    stores.projector = Projector(datastore, MasterProjection(), batch_events=batch_events)

    stores.project()

    assert_equals_fresh_fold(stores, "s", head)


def test_many_workers_share_the_spaces(database, stores):
    """Eight concurrent workers apply each event of each space exactly once."""
    heads = {f"s{n}": random_history(stores, f"s{n}", seed=n, pushes=30) for n in range(6)}

    with Datastore(database, pool_size_max=9) as datastore, ThreadPoolExecutor(8) as threads:
        workers = [Projector(datastore, MasterProjection(), batch_events=3) for _ in range(8)]

        def work(worker: Projector) -> None:
            while spaces := worker.lagging():
                for space in spaces:
                    worker.project_or_halt(space)

        list(threads.map(work, workers))

    for space, head in heads.items():
        assert_equals_fresh_fold(stores, space, head)


def test_a_crash_in_a_batch_leaves_all_or_nothing_of_it(datastore, stores, monkeypatch):
    """The position moves with the rows, so a failed batch is repeated as a whole."""
    head = random_history(stores, "s", seed=1)

    class Killed(BaseException):
        """A BaseException, because the code handles each Exception, but a kill is unhandled."""

    def dies(*_, **__):
        raise Killed

    for batch_events in (5, 11):
        stores.projector = Projector(datastore, MasterProjection(), batch_events=batch_events)
        with monkeypatch.context() as patch:
            # The kill happens between the write of the rows and the write of the position.
            patch.setattr(stores.projector.positions, "advance", dies)
            with pytest.raises(Killed):
                stores.projector.project("s")
        stores.projector.project("s")

    stores.project()
    assert_equals_fresh_fold(stores, "s", head)


@pytest.mark.parametrize("page_events", [1, 4, 1_000])
@pytest.mark.parametrize("projection", ["master", "proofs"])
def test_what_was_rolled_back_is_forgotten(datastore, stores, monkeypatch, projection, page_events):
    """An attempt fails after its rows were written. Its records and tiles leave the memory with its
    savepoint, in the same transaction and in the next one: otherwise an event counts twice."""
    head = random_history(stores, "s", seed=3)
    monkeypatch.setattr(batches, "PAGE_EVENTS", page_events)
    projector = Projector(datastore, projection_named(projection), batch_events=16)
    advance, failures = projector.positions.advance, []

    def fails_at_first(cursor, space, number, *, expected, to):
        if failures.count(expected) < 2 and to > expected + 1:
            failures.append(expected)
            raise ValueError("a fault of ours")
        advance(cursor, space, number, expected=expected, to=to)

    monkeypatch.setattr(projector.positions, "advance", fails_at_first)
    while projector.project("s"):
        pass

    assert failures and projector.lagging() == []
    if projection == "master":
        assert_equals_fresh_fold(stores, "s", head)
    else:
        builder = TreeBuilder()
        builder.append([leaf_hash(entry.leaf) for entry in stores.entries("s", through=head)])
        assert stores.proofs.consistency("s", 1, head).new_root == builder.root()


@pytest.mark.parametrize("fails_at", ["write", "commit"])
def test_a_failed_transaction_is_forgotten(datastore, stores, monkeypatch, fails_at):
    """The projector keeps the records of a space for its next batch, but never those of a
    transaction that the database has undone."""
    stores.push("s", push_of(*(changeset(add(n=1), add("other", n=1)) for _ in range(8))))
    projector = Projector(datastore, MasterProjection(), batch_events=4)
    projector.project("s")
    assert projector._caches, "more events wait, so the records stay in memory"
    head = stores.push("s", push_of(*(changeset(add(n=1)) for _ in range(8)))).head
    committed = datastore.committed

    @contextmanager
    def undone():
        with committed() as cursor:
            yield cursor
            raise OperationalError("the connection broke during the commit")

    def fails(*_, **__):
        raise psycopg.OperationalError("the connection broke")

    with monkeypatch.context() as patch:
        if fails_at == "commit":
            patch.setattr(datastore, "committed", undone)
        else:
            patch.setattr(projector.positions, "advance", fails)
        for _ in range(2):
            with pytest.raises((OperationalError, psycopg.OperationalError)):
                projector.project("s")
    while projector.project("s"):
        pass
    assert_equals_fresh_fold(stores, "s", head)


def test_an_event_is_never_applied_twice(datastore, stores):
    """A worker with an outdated position gets an error when it moves the position."""
    stores.push("s", push_of(changeset(add(n=1)), changeset(add(n=1))))
    stores.project()
    with pytest.raises(Exception, match="is not at 0"), datastore.committed() as cursor:
        stores.projector.positions.advance(cursor, "s", 1, expected=0, to=2)


def poison(database: str, space: str, seq: int) -> None:
    """Inserts an unreadable event into the log by plain SQL."""
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO events SELECT originator_id, %(seq)s, topic, '{\"seq\": oh no', "
            "%(id)s, device, received_at_ms, collections, salt, ops_hash FROM events "
            "WHERE originator_id = %(space)s AND originator_version = 1",
            {"seq": seq, "space": space, "id": new_id()},
        )
        conn.execute("UPDATE spaces SET head = %s WHERE space = %s", (seq, space))


def test_an_unreadable_event_halts_its_space_alone(database, stores):
    """Earlier events are projected, status tells seq and reason, appends and other spaces go on."""
    stores.push("bad", push_of(changeset(put("a", x=1)), changeset(put("b", x=1))))
    poison(database, "bad", 3)
    stores.push("good", push_of(changeset(put("a", x=1))))

    stores.project()
    receipt = stores.push("bad", push_of(changeset(put("c", x=1))))
    stores.project()

    lines = {line.space: line for line in master_status(stores.datastore)}
    of_all_or_master = [
        gauge
        for gauge in gauges(stores.datastore)
        if gauge.labels.get("projection", "master") == "master"
        and not gauge.labels.keys() & {"alarm", "role"}
    ]
    assert {gauge.name: gauge.value for gauge in of_all_or_master} == {
        "foldlog_spaces": 2,
        "foldlog_events": 5,
        "foldlog_signing_stopped_spaces": 0,
        "foldlog_unsigned_events_max": 0,
        "foldlog_lag_events": 2,
        "foldlog_lag_events_max": 2,
        "foldlog_stopped_spaces": 1,
        "foldlog_stale_spaces": 0,
    }
    assert (lines["bad"].position, lines["bad"].stopped_at) == (2, 3)
    assert "DecodeError" in lines["bad"].stopped_why
    assert (lines["good"].lag, lines["good"].stopped_at) == (0, None)
    assert receipt.verdicts[0].seq == 4
    assert len(stores.page("bad", RecordsQuery(10)).records) == 2


def test_a_failing_statement_halts_its_space_alone(datastore, stores, monkeypatch):
    """psycopg raises OperationalError for an exceeded limit, while the connection stays usable."""
    for space in ("a", "b"):
        stores.push(space, push_of(changeset(put("x", n=1))))
    apply = stores.projector._projection.apply

    def too_much(to, events):
        if to.space == "a":
            to.cursor.execute("SELECT repeat('x', 2147483647)")  # SQLSTATE 54000
        yield from apply(to, events)

    monkeypatch.setattr(stores.projector._projection, "apply", too_much)
    stores.project()
    lines = {line.space: line for line in master_status(datastore)}
    assert lines["a"].stopped_at == 1 and lines["b"].lag == 0


def test_a_space_that_breaks_the_connection_halts_alone(database, stores, monkeypatch):
    """A batch that is too large for the server ends its session. The other spaces go on."""
    for space in ("a", "b"):
        stores.push(space, push_of(changeset(put("x", n=1))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection())
        apply = worker._projection.apply

        def breaks(to, events):
            if to.space == "a":
                to.cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            yield from apply(to, events)

        monkeypatch.setattr(worker._projection, "apply", breaks)
        for number in range(1, projector_module.FAILURES_MAX + 1):
            # So many failures may come from a server that restarts.
            assert master_status(datastore, "a")[0].stopped_at is None
            for space in worker.lagging():
                is_last = space == "b" or number == projector_module.FAILURES_MAX
                with nullcontext() if is_last else pytest.raises(OperationalError):
                    worker._project_or_count(space)
        lines = {line.space: line for line in master_status(datastore)}
    assert lines["a"].stopped_at == 1 and lines["b"].lag == 0


def breaking_at(worker: Projector, monkeypatch, seq: int) -> list[int]:
    """Makes an event of space `a` break the connection. Returns the sizes of all attempts."""
    sizes = []
    apply = worker._projection.apply

    def breaks(to, events):
        if to.space == "a":
            sizes.append(len(events))
            if events[0][0] <= seq <= events[-1][0]:
                to.cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        yield from apply(to, events)

    monkeypatch.setattr(worker._projection, "apply", breaks)
    return sizes


def test_smaller_batches_find_the_event_that_breaks_the_connection(database, stores, monkeypatch):
    """Status names an event that failed alone, and all events before it are projected."""
    stores.push("a", push_of(*(changeset(put("x", n=n)) for n in range(20))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection())
        sizes = breaking_at(worker, monkeypatch, seq=18)
        while master_status(datastore, "a")[0].stopped_at is None:
            with suppress(OperationalError):
                worker._project_or_count("a")
    assert sizes == [20, 20, 15, 5, 1, 1, 1, 1]
    [line] = master_status(stores.datastore, "a")
    assert (line.position, line.stopped_at) == (17, 18)


def test_batches_grow_again_after_the_failed_events(database, stores, monkeypatch):
    """The database may have been the cause, so the space must return to its full speed."""
    stores.push("a", push_of(*(changeset(put("x", n=n)) for n in range(20))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection(), batch_events=16)
        with monkeypatch.context() as patch, pytest.raises(OperationalError):
            breaking_at(worker, patch, seq=1)
            worker._project_or_count("a")
        sizes = breaking_at(worker, monkeypatch, seq=0)
        while worker._project_or_count("a"):
            pass
    assert sizes == [1] * 16 + [4]


def test_the_last_attempt_before_a_halt_is_a_single_event():
    """A larger batch could blame an event that is harmless."""
    assert projector_module.BATCH_EVENTS < projector_module.SHRINK_FACTOR ** (
        projector_module.FAILURES_MAX - 1
    )


def test_a_failed_space_comes_last_in_the_next_round(database, stores, monkeypatch):
    """A failure may be slow and ends the round, so the other spaces come first."""
    for space in ("a", "b"):
        stores.push(space, push_of(changeset(put("x", n=1))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection())
        breaking_at(worker, monkeypatch, seq=1)
        for lag in (1, 0):
            with pytest.raises(OperationalError):
                worker.run_round(Awake())
            worker.reset()
            assert master_status(datastore, "b")[0].lag == lag


def wide(number: int, fields: int = 256) -> dict[str, str]:
    """Fields of 1 KB, so that they are stored in the master table."""
    return {f"f{n}": f"{number:04}" * 256 for n in range(fields)}


def large_record(stores, monkeypatch, *, batch_bytes: int) -> None:
    """Pushes 40 versions of a record of 256 KB. A statement has room for four."""
    monkeypatch.setattr(record_rows, "STATEMENT_BYTES", 2**20)
    monkeypatch.setattr(batches, "WRITTEN_BYTES", batch_bytes)
    stores.push("s", push_of(*(changeset(put("x", **wide(n))) for n in range(40))))


def test_a_large_record_with_many_changes_takes_many_batches(datastore, stores, monkeypatch):
    """A limit of bytes lets other spaces in between."""
    large_record(stores, monkeypatch, batch_bytes=2 * 2**20)
    positions = [0]
    while stores.projector.project_or_halt("s"):
        positions.append(master_status(datastore, "s")[0].position)
    assert positions == list(range(0, 41, 8))
    assert_equals_fresh_fold(stores, "s", 40)


def test_the_time_of_a_batch_is_bounded(datastore, stores, monkeypatch):
    """A slow batch ends after a part of a page, and the next batch continues there."""
    large_record(stores, monkeypatch, batch_bytes=2**30)
    monkeypatch.setattr(batches, "BATCH_SECONDS", 0)
    assert stores.projector.project_or_halt("s")
    assert master_status(datastore, "s")[0].position == 4


@pytest.mark.parametrize("kind", ["values in the log", "in parts", "both"])
def test_one_event_may_touch_more_than_the_memory_holds(datastore, stores, kind):
    """Such an event is folded record by record. It names 60 records of 256 KB, each twice."""
    ids = [f"r{n:02}" for n in range(60)]
    for n, id in enumerate(ids):
        fields = {} if kind == "values in the log" else wide(n)
        fields |= {} if kind == "in parts" else {"text": f"{n:04}" * 2**16}
        stores.push("s", push_of(changeset(put(id, **fields))))
        stores.project()
    flags = changeset(*(put(id, flag=n) for n, id in enumerate(ids * 2)))
    tops = changeset(*(put(id, top=True) for id in ids))
    head = stores.push("s", push_of(flags, tops)).head
    projection = MasterProjection()
    small = partial(RecordCache, bytes_max=2**20)
    projection.new_cache = lambda position, **_: small(position)
    worker = Projector(datastore, projection)
    tracemalloc.start()
    try:
        assert worker.project_or_halt("s")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert_equals_fresh_fold(stores, "s", head)
    Rebuilder(datastore, MasterProjection()).rebuild("s", verify=True)


@pytest.mark.parametrize("size", [1, 600, 2_000, 10_000])
def test_all_statement_sizes_give_the_same_table(datastore, stores, monkeypatch, size):
    """The table is the fold of the log, also if a statement ends within an event."""
    for module in (record_rows, conflict_rows):
        monkeypatch.setattr(module, "STATEMENT_BYTES", size)
    head = random_history(stores, "s", seed=size)
    stores.project()
    assert_equals_fresh_fold(stores, "s", head)
    Rebuilder(datastore, MasterProjection()).rebuild("s", verify=True)


def test_a_late_report_of_a_halt_is_ignored(datastore, stores):
    """Another worker may have projected the event since."""
    stores.push("s", push_of(changeset(put("x", n=1))))
    slow = Projector(datastore, MasterProjection())

    def project_meanwhile(space):
        stores.project()
        raise batches.Halted(1, 1, "no memory, just then")

    slow.project = project_meanwhile
    slow.project_or_halt("s")
    assert master_status(datastore, "s")[0].stopped_at is None


def test_a_generation_of_another_version_is_left_alone(database, datastore, stores):
    """Two merge rules must not mix in one table. A rebuild replaces it."""
    stores.push("s", push_of(changeset(put("x", n=1))))
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE projections SET fold_version = 0")
    stores.project()
    (line,) = master_status(datastore, "s")
    assert line.position == 0 and line.needs_rebuild
    Rebuilder(datastore, MasterProjection()).rebuild("s")
    assert_equals_fresh_fold(stores, "s", 1)


def test_a_failing_event_takes_as_few_attempts_as_possible(database, stores, monkeypatch):
    """Each attempt may take a second, and the other spaces wait.

    So a batch ends at the head of the log, and the retry of a halted space tries the event alone.
    """
    stores.push("s", push_of(changeset()))
    stores.project()
    poison(database, "s", 2)
    tried = []
    advance = stores.projector._batches._apply
    monkeypatch.setattr(
        stores.projector._batches,
        "_apply",
        lambda to, start, until, ends_at: tried.append(until) or advance(to, start, until, ends_at),
    )
    stores.project()
    assert len(tried) == 1
    stores.push("s", push_of(*(changeset() for _ in range(5))))
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE projections SET stopped_until = NULL")
    stores.projector.project_or_halt("s")
    assert tried[1:] == [2]


def test_a_slow_failing_batch_tries_only_its_first_event_next(stores, monkeypatch):
    """Bisection would take eleven more slow attempts, and all other spaces would wait."""
    monkeypatch.setattr(batches, "BATCH_SECONDS", 0.0)
    head = stores.push("s", push_of(*(changeset(put("a", n=n)) for n in range(100)))).head
    tried = []

    def fails_on_the_last(topic, state):
        if b'"n":99' in state:
            raise ValueError("what is this?")
        return UPCASTER.decode(topic, state)

    apply = stores.projector._batches._apply
    with monkeypatch.context() as patch:
        patch.setattr(master_module, "UPCASTER", SimpleNamespace(decode=fails_on_the_last))
        patch.setattr(
            stores.projector._batches,
            "_apply",
            lambda to, start, until, ends_at: (
                tried.append(until - start) or apply(to, start, until, ends_at)
            ),
        )
        stores.projector.project("s")
    assert tried[1:] == [1]
    stores.project()
    assert_equals_fresh_fold(stores, "s", head)


RIDDLE = b'{"seq":2,"kind":"riddle","id":"x","received_at":"now","body":1}'


def test_a_halted_space_is_retried(database, stores, monkeypatch):
    """The space goes on by itself after the cause is gone, here by newer code."""
    stores.push("s", push_of(changeset(put("a", x=1))))
    poison(database, "s", 2)
    monkeypatch.setattr(projector_module, "RETRY_SECONDS", 0)
    while stores.projector.project_or_halt("s"):
        pass
    assert master_status(stores.datastore, "s")[0].stopped_at == 2

    def newer(topic, state):
        return UPCASTER.decode(topic, RIDDLE if b"oh no" in state else state)

    monkeypatch.setattr(master_module, "UPCASTER", SimpleNamespace(decode=newer))
    stores.projector.project_or_halt("s")

    (line,) = master_status(stores.datastore, "s")
    assert (line.position, line.stopped_at, line.stopped_why) == (2, None, None)


def test_a_running_projector_is_woken_at_once(database, datastore, stores, monkeypatch):
    """A notification wakes the projector long before the next poll."""
    wakeups = Wakeups(database)
    worker = Projector(datastore, MasterProjection())
    thread = Thread(target=worker.run, args=(wakeups,))
    thread.start()
    announcer = Announcer(datastore)
    try:
        for n in range(1, 6):
            receipt = stores.push("s", push_of(changeset(put(str(n), x=n))))
            announcer.announce("s", 1)
            # A poll may find the first appends, because the listener may not listen yet. After
            # that the next poll is far away.
            deadline = time.monotonic() + 30
            master = PostgresMasterTable(datastore)
            while master.position("s").position < receipt.head:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            page = master.page("s", RecordsQuery(10, at_least=receipt.head))
            assert len(page.records) == n
            monkeypatch.setattr(projector_module, "POLL_SECONDS", 600)
    finally:
        announcer.close()
        wakeups.close()
        thread.join(10)
    assert not thread.is_alive()


def test_the_fold_of_the_tail_is_the_fold_of_the_table(stores):
    """A lagging projection does not change the decision on a guard."""
    stores.push("s", push_of(changeset(put("a", x=1)), device=A))
    stores.project()
    stores.push("s", push_of(changeset(put("a", x=2), base=1), device=B))  # not projected yet
    guarded = changeset(put("a", x=3), base=1, guard="unchanged")

    (verdict,) = stores.push("s", push_of(guarded, device=A)).verdicts

    assert verdict.verdict == "refused" and verdict.refusal.code == "stale"
    assert [(record.fields, record.seq) for record in verdict.records] == [({"x": 2}, 2)]


class Awake:
    """Wakeups of a running service that receives no notification."""

    closed = False


def test_each_space_has_a_batch_between_two_batches_of_a_flooded_one(datastore, stores):
    """A quiet space waits for one batch of each other space at most."""
    worker = Projector(datastore, MasterProjection(), batch_events=5)
    stores.push("flooded", push_of(*(changeset() for _ in range(40))))

    for round in range(1, 5):
        stores.push("quiet", push_of(changeset()))
        worker.wake(["flooded", "quiet"])
        worker.run_round(Awake())

        [flooded] = master_status(datastore, "flooded")
        [quiet] = master_status(datastore, "quiet")
        assert (flooded.position, quiet.lag) == (5 * round, 0)


def test_spaces_that_always_lag_do_not_hide_the_others(datastore, stores, monkeypatch):
    """Of more spaces than are looked up at once, the next ones are found the next time."""
    monkeypatch.setattr(projector_module, "SPACES_PER_ROUND", 2)
    worker = Projector(datastore, MasterProjection())
    for space in "abcde":
        stores.push(space, push_of(changeset()))

    assert [worker.lagging() for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], ["a", "b"]]
