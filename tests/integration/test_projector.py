"""The projector: each event once, whatever crashes, and one space's trouble is its own."""

from __future__ import annotations

import random
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from threading import Thread

import psycopg
import pytest
from eventsourcing.persistence import OperationalError
from msgspec.json import decode, encode

from foldlog.domain.limits import Limits
from foldlog.domain.merge import conflict_document, view_of
from foldlog.domain.ports import RecordsQuery
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.wakeups import Announcer, Wakeups
from foldlog.infrastructure.postgres.master import ledger_rows, record_rows
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.master.table import PostgresMasterTable
from foldlog.infrastructure.postgres.rebuild import projector as projector_module
from foldlog.infrastructure.postgres.rebuild.projector import Projector
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.status import gauges, status
from foldlog.scripts.commands.replay import fold_all, sorted_records
from tests.helpers import A, B, C, add, changeset, delete, kept_conflict, new_id, push_of, put


def random_history(stores, space: str, seed: int, pushes: int = 60) -> int:
    """Three devices at odds over a few records; returns the head."""
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
    """All rows of the live generation, as they are stored."""
    with stores.datastore.rows() as cursor:
        return cursor.execute(
            "SELECT r.* FROM records r JOIN projections p USING (space, generation) "
            "WHERE space = %s AND p.projection = 'master' AND p.is_live ORDER BY collection, id",
            (space,),
        ).fetchall()


def master_status(datastore, space: str | None = None):
    """The status of the master table alone."""
    return [line for line in status(datastore, space) if line.projection == "master"]


def assert_equals_fresh_fold(stores, space: str, head: int) -> None:
    """The master table and the ledger are what a fold of the log from 1 to head makes."""
    states = [entry.state for entry in stores.entries(space, through=head)]
    records, conflicts = fold_all(states)
    page = stores.page(space, RecordsQuery(1_000, changed_after=0, at_least=head))
    found = sorted((decode(doc) for doc in page.records), key=lambda r: (r["collection"], r["id"]))
    assert found == [decode(encode(view_of(record))) for record in sorted_records(records)]
    ledger = stores.conflicts(space, limit=1_000, cursor=None).conflicts
    assert [kept_conflict(doc) for doc in ledger] == [
        decode(encode(conflict_document(conflict))) for conflict in conflicts
    ]


@pytest.mark.parametrize("turn_events", [1, 2, 7, 1_000])
@pytest.mark.parametrize("batch_events", [1, 3, 1_000])
def test_batch_sizes_do_not_matter(datastore, stores, monkeypatch, turn_events, batch_events):
    """However the log is cut into transactions and batches, the table is the fold of the log."""
    monkeypatch.setattr(projector_module, "BATCH_EVENTS", batch_events)
    head = random_history(stores, "s", seed=turn_events)
    stores.projector = Projector(datastore, MasterProjection(), turn_events=turn_events)

    stores.project()

    assert_equals_fresh_fold(stores, "s", head)


def test_many_workers_share_the_spaces(database, stores):
    """Eight workers at once apply every event of every space exactly once."""
    heads = {f"s{n}": random_history(stores, f"s{n}", seed=n, pushes=30) for n in range(6)}

    with Datastore(database, pool_size_max=9) as datastore, ThreadPoolExecutor(8) as threads:
        workers = [Projector(datastore, MasterProjection(), turn_events=3) for _ in range(8)]

        def work(worker: Projector) -> None:
            while spaces := worker.lagging():
                for space in spaces:
                    worker.project_or_stop(space)

        list(threads.map(work, workers))

    for space, head in heads.items():
        assert_equals_fresh_fold(stores, space, head)


def test_a_crash_in_a_batch_leaves_all_or_nothing_of_it(datastore, stores, monkeypatch):
    """The position moves with what was projected: a batch that fails is done again, whole."""
    head = random_history(stores, "s", seed=1)

    class Killed(BaseException):
        """Not an Exception: like a kill, nothing handles it."""

    def dies(*_, **__):
        raise Killed

    for turn_events in (5, 11):
        stores.projector = Projector(datastore, MasterProjection(), turn_events=turn_events)
        with monkeypatch.context() as patch:
            # After the rows are written, before the position is.
            patch.setattr(stores.projector.positions, "advance", dies)
            with pytest.raises(Killed):
                stores.projector.project("s")
        stores.projector.project("s")

    stores.project()
    assert_equals_fresh_fold(stores, "s", head)


def test_an_event_is_never_applied_twice(datastore, stores):
    """A worker that believes in an old position is stopped by the position itself."""
    stores.push("s", push_of(changeset(add(n=1)), changeset(add(n=1))))
    stores.project()
    with pytest.raises(Exception, match="applied already"), datastore.committed() as cursor:
        stores.projector.positions.advance(cursor, "s", 1, expected=0, to=2)


def poison(database: str, space: str, seq: int) -> None:
    """Puts an event into the log that nobody can read, past all our code."""
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO events SELECT originator_id, %(seq)s, topic, '{\"seq\": oh no', "
            "%(id)s, device, received_at_ms, collections, salt, ops_hash FROM events "
            "WHERE originator_id = %(space)s AND originator_version = 1",
            {"seq": seq, "space": space, "id": new_id()},
        )
        conn.execute("UPDATE spaces SET head = %s WHERE space = %s", (seq, space))


def test_an_event_that_cannot_be_processed_stops_its_space_alone(database, stores):
    """What is before it is projected, status tells where and why, appends and others go on."""
    stores.push("bad", push_of(changeset(put("a", x=1)), changeset(put("b", x=1))))
    poison(database, "bad", 3)
    stores.push("good", push_of(changeset(put("a", x=1))))

    stores.project()
    receipt = stores.push("bad", push_of(changeset(put("c", x=1))))
    stores.project()

    lines = {line.space: line for line in master_status(stores.datastore)}
    of_all_or_master = [
        gauge for gauge in gauges(stores.datastore) if gauge.labels.get("projection") != "proofs"
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


def test_a_statement_that_fails_stops_its_space_alone(datastore, stores, monkeypatch):
    """psycopg calls a program limit or a timeout operational; the connection is fine."""
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


def test_a_space_that_breaks_the_connection_stops_alone(database, stores, monkeypatch):
    """A batch that is too much for the server ends its session; the next space has its turn."""
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
        for number in range(1, projector_module.BREAKS_MAX + 1):
            # As often may be a server that restarts; what goes on like that is the space's own.
            assert master_status(datastore, "a")[0].stopped_at is None
            for space in worker.lagging():
                is_last = space == "b" or number == projector_module.BREAKS_MAX
                with nullcontext() if is_last else pytest.raises(OperationalError):
                    worker._project_or_note(space)
        lines = {line.space: line for line in master_status(datastore)}
    assert lines["a"].stopped_at == 1 and lines["b"].lag == 0


def breaking_at(worker: Projector, monkeypatch, seq: int) -> list[int]:
    """Has an event of space `a` break the connection; how many events were folded each time."""
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


def test_what_breaks_the_connection_is_found_by_smaller_turns(database, stores, monkeypatch):
    """No seq is named but of an event that failed alone, and what is before it is projected."""
    stores.push("a", push_of(*(changeset(put("x", n=n)) for n in range(20))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection())
        sizes = breaking_at(worker, monkeypatch, seq=18)
        while master_status(datastore, "a")[0].stopped_at is None:
            with suppress(OperationalError):
                worker._project_or_note("a")
    assert sizes == [20, 20, 15, 5, 1, 1, 1]
    [line] = master_status(stores.datastore, "a")
    assert (line.position, line.stopped_at) == (17, 18)


def test_turns_are_large_again_past_what_failed(database, stores, monkeypatch):
    """It may have been the database's trouble, and a space must not be slow for ever."""
    stores.push("a", push_of(*(changeset(put("x", n=n)) for n in range(20))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection(), turn_events=16)
        with monkeypatch.context() as patch, pytest.raises(OperationalError):
            breaking_at(worker, patch, seq=1)
            worker._project_or_note("a")
        sizes = breaking_at(worker, monkeypatch, seq=0)
        while worker._project_or_note("a"):
            pass
    assert sizes == [1] * 16 + [4]


def test_before_a_space_is_given_up_one_event_is_tried_alone():
    """Or else the seq that is named as the one at which it stopped may be a harmless one."""
    assert projector_module.TURN_EVENTS < projector_module.FEWER ** (
        projector_module.BREAKS_MAX - 1
    )


def test_who_failed_has_the_next_turn_last(database, stores, monkeypatch):
    """What breaks the connection may be slow to do so, and ends the round: others come before."""
    for space in ("a", "b"):
        stores.push(space, push_of(changeset(put("x", n=1))))
    with Datastore(database) as datastore:
        worker = Projector(datastore, MasterProjection())
        breaking_at(worker, monkeypatch, seq=1)
        for lag in (1, 0):
            with pytest.raises(OperationalError):
                worker.take_turns(Awake())
            worker.start_over()
            assert master_status(datastore, "b")[0].lag == lag


def large_record(stores, monkeypatch, *, turn_bytes: int) -> None:
    """40 versions of a record of 256 KB, of which a statement has room for four."""
    monkeypatch.setattr(record_rows, "STATEMENT_BYTES", 2**20)
    monkeypatch.setattr(projector_module, "WRITTEN_BYTES", turn_bytes)
    large = changeset(put("x", text="x" * 2**18))
    stores.push("s", push_of(large, *(changeset(put("x", n=n)) for n in range(39))))


def test_a_large_record_that_changes_often_takes_many_turns(datastore, stores, monkeypatch):
    """A version each: a few small changesets make much to write, and others wait meanwhile."""
    large_record(stores, monkeypatch, turn_bytes=2 * 2**20)
    positions = [0]
    while stores.projector.project_or_stop("s"):
        positions.append(master_status(datastore, "s")[0].position)
    assert positions == list(range(0, 41, 8))
    assert_equals_fresh_fold(stores, "s", 40)


def test_the_time_of_a_turn_is_bounded(datastore, stores, monkeypatch):
    """What is slow ends its turn after a part, and goes on in the next."""
    large_record(stores, monkeypatch, turn_bytes=2**30)
    monkeypatch.setattr(projector_module, "TURN_SECONDS", 0)
    assert stores.projector.project_or_stop("s")
    assert master_status(datastore, "s")[0].position == 4


def test_not_all_that_is_written_is_in_memory(stores, monkeypatch):
    """Of 10 MB of versions there is a statement's worth at a time."""
    large_record(stores, monkeypatch, turn_bytes=2**30)
    tracemalloc.start()
    try:
        stores.projector.project("s")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize("size", [1, 600, 2_000, 10_000])
def test_sizes_of_statements_do_not_matter(datastore, stores, monkeypatch, size):
    """Wherever a part ends, in an event or after it, the table is the fold of the log."""
    for module in (record_rows, ledger_rows):
        monkeypatch.setattr(module, "STATEMENT_BYTES", size)
    head = random_history(stores, "s", seed=size)
    stores.project()
    assert_equals_fresh_fold(stores, "s", head)
    Rebuilder(datastore, MasterProjection()).rebuild("s", verify=True)


def test_a_late_note_of_a_stop_is_not_taken(datastore, stores):
    """What another worker has got past meanwhile has not stopped."""
    stores.push("s", push_of(changeset(put("x", n=1))))
    slow = Projector(datastore, MasterProjection())

    def project_meanwhile(space):
        stores.project()
        raise projector_module.Stopped(1, 1, "no memory, just then")

    slow.project = project_meanwhile
    slow.project_or_stop("s")
    assert master_status(datastore, "s")[0].stopped_at is None


def test_what_other_code_folded_is_left_alone(datastore, stores):
    """Half of one merge rule and half of another would be neither; a rebuild mends it."""
    stores.push("s", push_of(changeset(put("x", n=1))))
    with datastore.committed() as cursor:
        cursor.execute("UPDATE projections SET fold_version = 0")
    stores.project()
    (line,) = master_status(datastore, "s")
    assert line.position == 0 and line.needs_rebuild
    Rebuilder(datastore, MasterProjection()).rebuild("s")
    assert_equals_fresh_fold(stores, "s", 1)


LARGE = "x" * 60_000


def fold_within(stores, bytes_max: int) -> None:
    limits = Limits(touched_bytes_per_event_max=bytes_max)
    stores.projector = Projector(stores.datastore, MasterProjection(limits))
    stores.project()


def test_events_that_touch_much_are_folded_a_few_at_a_time(stores):
    """Each alone fits into memory, all of a batch would not."""
    ids = [f"r{number}" for number in range(10)]
    stores.push("s", push_of(*(changeset(put(id, text=LARGE)) for id in ids)))
    stores.project()
    head = stores.push("s", push_of(*(changeset(put(id, n=1)) for id in ids * 2))).head

    fold_within(stores, 100_000)

    assert_equals_fresh_fold(stores, "s", head)


def test_an_event_that_touches_more_than_fits_stops_its_space_alone(stores):
    """It says so, and goes on once there is more room, or an admin has it skipped."""
    head = {}
    two = changeset(put("a", text=LARGE)), changeset(put("b", text=LARGE))
    for space in ("more room", "skipped", "other"):
        stores.push(space, push_of(*two))
    stores.project()
    for space in ("more room", "skipped", "other"):
        both = () if space == "other" else (changeset(put("a", n=1), put("b", n=1)),)
        one = changeset(put("a", n=2))
        head[space] = stores.push(space, push_of(changeset(put("c", n=0)), *both, one)).head

    fold_within(stores, 100_000)

    lines = {line.space: line for line in master_status(stores.datastore)}
    assert {space: line.position for space, line in lines.items()} == {
        "more room": 3,
        "skipped": 3,
        "other": 4,
    }
    assert "touched_bytes_per_event_max" in lines["skipped"].stopped_why
    stores.skip("skipped", 4, reason="too much")
    stores.project()
    [line] = master_status(stores.datastore, "skipped")
    assert (line.lag, line.stopped_at) == (0, None)
    page = stores.page("skipped", RecordsQuery(10))
    assert [decode(record)["fields"].get("n") for record in page.records] == [2, None, 0]

    with stores.datastore.committed() as cursor:  # as when it has rested
        cursor.execute("UPDATE projections SET stopped_until = NULL RETURNING space")
    fold_within(stores, 1_000_000)
    assert_equals_fresh_fold(stores, "more room", head["more room"])


def test_what_fails_is_not_tried_more_often_than_need_be(database, stores, monkeypatch):
    """Each try may cost a second, which the others wait for: neither turns of more events than
    there are, nor, once it has stopped, ever smaller ones again."""
    stores.push("s", push_of(changeset()))
    stores.project()
    poison(database, "s", 2)
    tried = []
    advance = stores.projector._apply
    monkeypatch.setattr(
        stores.projector,
        "_apply",
        lambda to, start, until, ends_at: tried.append(until) or advance(to, start, until, ends_at),
    )
    stores.project()
    assert len(tried) == 1
    stores.push("s", push_of(*(changeset() for _ in range(5))))
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE projections SET stopped_until = NULL")
    stores.projector.project_or_stop("s")
    assert tried[1:] == [2]


def test_a_turn_that_fails_and_takes_its_time_ends_with_the_first_event(stores, monkeypatch):
    """Or eleven more tries, each as slow, would hold up all other spaces."""
    monkeypatch.setattr(projector_module, "TURN_SECONDS", 0.0)
    head = stores.push("s", push_of(*(changeset(put("a", n=n)) for n in range(100)))).head
    understood, tried = stores.projector._projection._mapper.decode, []

    def fails_on_the_last(topic, state):
        if b'"n":99' in state:
            raise ValueError("what is this?")
        return understood(topic, state)

    apply = stores.projector._apply
    with monkeypatch.context() as patch:
        patch.setattr(stores.projector._projection._mapper, "decode", fails_on_the_last)
        patch.setattr(
            stores.projector,
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


def test_a_stopped_space_is_tried_again(database, stores, monkeypatch):
    """When the cause is gone - here: newer code - the space goes on by itself."""
    stores.push("s", push_of(changeset(put("a", x=1))))
    poison(database, "s", 2)
    monkeypatch.setattr(projector_module, "RETRY_SECONDS", 0)
    while stores.projector.project_or_stop("s"):
        pass
    assert master_status(stores.datastore, "s")[0].stopped_at == 2

    mapper = stores.projector._projection._mapper
    understood = mapper.decode
    monkeypatch.setattr(
        mapper,
        "decode",
        lambda topic, state: understood(topic, RIDDLE if b"oh no" in state else state),
    )
    stores.projector.project_or_stop("s")

    (line,) = master_status(stores.datastore, "s")
    assert (line.position, line.stopped_at, line.stopped_why) == (2, None, None)


def test_a_running_projector_is_woken_at_once(database, datastore, stores):
    """An append is projected well before the poll interval would come round."""
    wakeups = Wakeups(database)
    worker = Projector(datastore, MasterProjection())
    thread = Thread(target=worker.run, args=(wakeups,))
    thread.start()
    announcer = Announcer(datastore)
    try:
        for n in range(1, 6):
            receipt = stores.push("s", push_of(changeset(put(str(n), x=n))))
            announcer.announce("s", 1)
            # A poll alone would take two seconds. Only the first append may be left to one: the
            # listener may not listen yet.
            deadline = time.monotonic() + (1 if n > 1 else 10)
            master = PostgresMasterTable(datastore)
            while master.position("s").position < receipt.head:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            page = master.page("s", RecordsQuery(10, at_least=receipt.head))
            assert len(page.records) == n
    finally:
        announcer.close()
        wakeups.close()
        thread.join(10)
    assert not thread.is_alive()


def test_the_fold_of_the_tail_is_the_fold_of_the_table(stores):
    """A guard decided while the projection lags is decided as if it did not."""
    stores.push("s", push_of(changeset(put("a", x=1)), device=A))
    stores.project()
    stores.push("s", push_of(changeset(put("a", x=2), base=1), device=B))  # not projected yet
    guarded = changeset(put("a", x=3), base=1, guard="unchanged")

    (verdict,) = stores.push("s", push_of(guarded, device=A)).verdicts

    assert verdict.verdict == "refused" and verdict.refusal.code == "stale"
    assert [(record.fields, record.seq) for record in verdict.records] == [({"x": 2}, 2)]


class Awake:
    """Wakeups that never come, of a service that goes on."""

    closed = False


def test_between_two_turns_of_a_space_that_is_flooded_every_other_has_one(datastore, stores):
    """What a quiet space waits for is one turn of each other, however far those are behind."""
    worker = Projector(datastore, MasterProjection(), turn_events=5)
    stores.push("flooded", push_of(*(changeset() for _ in range(40))))

    for turn in range(1, 5):
        stores.push("quiet", push_of(changeset()))
        worker.wake(["flooded", "quiet"])
        worker.take_turns(Awake())

        [flooded] = master_status(datastore, "flooded")
        [quiet] = master_status(datastore, "quiet")
        assert (flooded.position, quiet.lag) == (5 * turn, 0)


def test_spaces_that_always_lag_do_not_hide_the_others(datastore, stores, monkeypatch):
    """Of more spaces than are looked up at once, the next ones are found the next time."""
    monkeypatch.setattr(projector_module, "SPACES_PER_ROUND", 2)
    worker = Projector(datastore, MasterProjection())
    for space in "abcde":
        stores.push(space, push_of(changeset()))

    assert [worker.lagging() for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], ["a", "b"]]
