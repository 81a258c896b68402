"""The append transaction: the parts of it that need a real database."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event

import psycopg
import pytest

from foldlog.api.http.problems import status_of
from foldlog.domain import push_decider
from foldlog.domain.collections import Proposal
from foldlog.domain.errors import (
    CounterGap,
    DeviceForked,
    IdReused,
    LimitExceeded,
    LogBehind,
    OutcomeUnknown,
    ProjectionBehind,
    StorageUnavailable,
)
from foldlog.domain.events import decode_event
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import RangeQuery
from foldlog.domain.proofs import header_of, leaf_hash, leaf_of
from foldlog.domain.push_decider import PushDecider
from foldlog.domain.times import parse_time
from foldlog.infrastructure.postgres import event_store
from foldlog.infrastructure.postgres.append.appender import Appender
from foldlog.infrastructure.postgres.append.space_cache import DatabaseClock
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from tests.helpers import A, B, C, changeset, new_id, pull_all, push_of, put


def test_pushes_that_wait_together_are_committed_together(database, stores):
    """While one holds the space's row, the others gather. They end up in one transaction."""
    stores.push("s", push_of(changeset()))
    queues = stores.log._group_commit._queues
    with psycopg.connect(database) as blocker:
        blocker.execute("SELECT 1 FROM spaces WHERE space = 's' FOR UPDATE")
        futures = []
        for number in range(9):
            push = push_of(changeset(put(str(number))), device=new_id())
            futures.append(stores.submit("s", push))
            deadline = time.monotonic() + 10
            while number == 0 and queues.get("s") and time.monotonic() < deadline:
                time.sleep(0.001)
        blocker.rollback()
        seqs = sorted(future.result(10).verdicts[0].seq for future in futures)

    assert seqs == list(range(2, 11))
    with stores.datastore.rows() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM events WHERE originator_version > 2")
        assert cursor.fetchone() == (1,)


def test_one_that_is_refused_takes_no_other_along(datastore, stores):
    """A counter gap in a group is refused, and its neighbours are stored."""
    pushes = [
        push_of(changeset(counter=1), device=A),
        push_of(changeset(counter=9), device=B),
        push_of(changeset()),
    ]
    good, bad, also_good = Appender(datastore, Limits()).append("s", pushes).outcomes
    assert isinstance(bad, CounterGap)
    assert [good.verdicts[0].seq, also_good.verdicts[0].seq] == [1, 2]
    assert len(pull_all(stores, "s")) == 2


def test_what_the_database_refuses_takes_no_other_along(database, datastore):
    """If the database refuses a row of a group, each push of the group is retried alone."""
    with psycopg.connect(database) as conn:
        conn.execute("ALTER TABLE events ADD CONSTRAINT odd CHECK (device <> '" + B + "')")
    store = PostgresEventStore(datastore)
    entered, go_on = Event(), Event()
    append = store._appender.append

    def slow(space, pushes):
        if not entered.is_set():
            entered.set()
            assert go_on.wait(10)
        return append(space, pushes)

    store._appender.append = slow
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(store.push, "s", push_of(changeset(), device=A))
        entered.wait(10)
        futures = {
            d: threads.submit(store.push, "s", push_of(changeset(), device=d)) for d in (A, B)
        }
        while len(store._group_commit._queues["s"]) < 2:
            time.sleep(0.001)
        go_on.set()
        assert first.result().verdicts[0].seq == 1
        assert futures[A].result().verdicts[0].seq == 2
        with pytest.raises(Exception, match="odd"):
            futures[B].result()


def test_going_one_by_one_has_a_deadline(stores, monkeypatch):
    """The retries stop in time for the callers' answers."""
    take = PushDecider.take

    def fails_for_b(self, push):
        assert push.device != B, "a fault of ours"
        return take(self, push)

    monkeypatch.setattr(PushDecider, "take", fails_for_b)
    monkeypatch.setattr(event_store, "ALONE_SECONDS_MAX", 0.0)
    outcomes = stores.log._append("s", [push_of(changeset(), device=d) for d in (A, B, C)])
    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 3


@pytest.mark.parametrize("trouble", [StorageUnavailable, OutcomeUnknown])
def test_going_one_by_one_ends_with_the_database(stores, monkeypatch, trouble):
    """After one retry finds the database unavailable, the others are answered at once."""
    append, alone = stores.log._appender.append, []

    def fails(space, pushes):
        assert len(pushes) == 1, "a fault of ours"
        alone.append(pushes)
        if len(alone) == 2:
            raise trouble
        return append(space, pushes)

    monkeypatch.setattr(stores.log._appender, "append", fails)
    stored, *others = stores.log._append("s", [push_of(changeset()) for _ in range(5)])
    assert stored.verdicts[0].seq == 1 and len(alone) == 2
    assert [type(o) for o in others] == [trouble, *[StorageUnavailable] * 3]


def test_a_fault_of_ours_takes_no_other_along(stores, monkeypatch):
    """If a bug makes the decision of one push fail, its neighbours are stored."""
    take = PushDecider.take

    def fails_for_b(self, push):
        assert push.device != B, "a fault of ours"
        return take(self, push)

    monkeypatch.setattr(PushDecider, "take", fails_for_b)
    outcomes = stores.log._append("s", [push_of(changeset(), device=d) for d in (A, B, C)])
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Receipt",
        "AssertionError",
        "Receipt",
    ]
    assert len(pull_all(stores, "s")) == 2


def test_leaves_are_cut_from_stored_bytes(stores):
    """Header, salt and ops_hash are in the log from the first event on, and make its mark."""
    stores.push("s", push_of(changeset(put(x=',"ops":')), changeset()))
    one, two = stores.entries("s", through=2)
    assert len(one.salt) == len(one.ops_hash) == 32 and one.salt != two.salt
    leaf = leaf_of(header_of(one.state), one.ops_hash)
    page = stores.range_after("s", RangeQuery(0, 1))
    assert page.mark == leaf_hash(leaf).hex()[:16]


def test_time_never_goes_back(database, datastore, stores):
    """If the server's clock is set back, `received_at` waits until the clock has caught up."""
    stores.push("s", push_of(changeset()))
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE spaces SET received_at_ms = 4102444800000")  # the year 2100
    # Another store, as in another process, because the first one has cached the earlier time.
    (verdict,) = PostgresEventStore(datastore).push("s", push_of(changeset())).verdicts
    assert verdict.received_at == "2100-01-01T00:00:00.000Z"


def test_time_never_goes_back_on_the_quick_way(datastore, stores):
    """The quick way takes the time from a clock in this process. If that clock is set back, the
    next event keeps the time of the one before, in the answer, in the log and in the space."""
    store = PostgresEventStore(datastore)
    store.push("s", push_of(changeset()))
    looks, cached = looks_of(store), store._appender._cache.get("s")
    cached.clock = DatabaseClock.set_to(4102444800000)  # the year 2100
    sent_at = datetime(2100, 1, 1, tzinfo=UTC)
    ahead = store.push("s", push_of(changeset(), sent_at=sent_at)).verdicts[0].received_at
    assert ahead.startswith("2100-01-01T00:00:0")
    for clock in (DatabaseClock.set_to(4102444800000 - 3_600_000), DatabaseClock.set_to(0)):
        cached.clock = clock
        (verdict,) = store.push("s", push_of(changeset())).verdicts
        assert verdict.received_at == ahead and verdict.time <= parse_time(ahead)
    assert not looks, "each push took the quick way"
    times = [decode_event(state).received_at for state in pull_all(store, "s")]
    assert times == sorted(times) and times[1:] == [ahead] * 3
    # The slow way of another process continues from there.
    (verdict,) = PostgresEventStore(datastore).push("s", push_of(changeset())).verdicts
    assert verdict.received_at == ahead


@pytest.mark.parametrize("is_cached", [False, True], ids=["slow", "quick"])
def test_a_base_within_the_group_is_refused(datastore, stores, is_cached):
    """The seqs of a group are given together, so no device knows one of them as its base."""
    appender = Appender(datastore, Limits())
    if is_cached:
        appender.append("s", [push_of(changeset())])
    else:
        stores.push("s", push_of(changeset()))
    pushes = [push_of(changeset(base=base), device=device) for base, device in ((1, A), (2, B))]
    stored, refused = appender.append("s", pushes).outcomes
    assert stored.verdicts[0].seq == 2
    assert isinstance(refused, LogBehind) and refused.extra["head"] == 1
    assert len(pull_all(stores, "s")) == 2


def test_guards_wait_for_no_projection_for_ever(database, datastore, stores):
    """A guard with too long a tail to fold is refused for now. Other pushes are stored."""
    limits = Limits(guard_tail_events_max=3)
    appender = Appender(datastore, limits)
    stores.push("s", push_of(*(changeset(put(str(n))) for n in range(5))))
    guarded, plain = appender.append(
        "s", [push_of(changeset(guard="unchanged", base=5)), push_of(changeset())]
    ).outcomes
    assert isinstance(guarded, ProjectionBehind)
    assert plain.verdicts[0].seq == 6


def test_a_duplicate_waits_for_no_projection(datastore, stores):
    """Its answer is in the log already, so its guard and the lag are irrelevant."""
    once = push_of(changeset(put("a"), guard="unchanged"))
    stores.push("s", once)
    stores.push("s", push_of(*(changeset(put(str(n))) for n in range(5))))
    appender = Appender(datastore, Limits(guard_tail_events_max=3))
    duplicate, gap = appender.append(
        "s", [once, push_of(changeset(guard="unchanged", counter=9), device=B)]
    ).outcomes
    assert duplicate.verdicts[0].duplicate and duplicate.verdicts[0].seq == 1
    assert isinstance(gap, CounterGap)


def looks_of(store):
    """Returns a list that grows whenever the store locks and loads a space."""
    looks = []
    load = store._appender._loader.lock_and_load

    def counted(*args, **kwargs):
        looks.append(args)
        return load(*args, **kwargs)

    store._appender._loader.lock_and_load = counted
    return looks


def test_the_space_is_looked_at_once(datastore):
    """While this process is the only writer, a push takes one statement, also a large one."""
    store = PostgresEventStore(datastore)
    looks = looks_of(store)
    store.push("s", push_of(changeset(counter=1)))
    looks.clear()
    for number, size in enumerate((1, 100, 3), start=1):
        store.push("s", push_of(*(changeset(put(f"{number}-{n}")) for n in range(size))))
    assert not looks
    assert [decode_event(event).seq for event in pull_all(store, "s")] == list(range(1, 106))


def test_what_another_process_appended_is_seen(datastore):
    """Two processes with cached states: every seq, counter and id is used once."""
    one, other = PostgresEventStore(datastore), PostgresEventStore(datastore)
    sent = [changeset(put(str(n)), counter=n + 1) for n in range(40)]
    for number, each in enumerate(sent):
        store = (one, other)[number % 3 == 0]
        assert store.push("s", push_of(each)).head == number + 1
    for store in (one, other):
        for number, each in enumerate(sent):
            (verdict,) = store.push("s", push_of(each)).verdicts
            assert (verdict.seq, verdict.duplicate) == (number + 1, True)
        with pytest.raises(DeviceForked):
            store.push("s", push_of(changeset(counter=40)))
    assert [decode_event(event).counter for event in pull_all(one, "s")] == list(range(1, 41))


@pytest.mark.parametrize("size", [2, 200])
def test_a_large_push_with_something_known_in_it(datastore, size):
    """Half of it is in the log already and is answered again. The rest is stored."""
    store = PostgresEventStore(datastore)
    first = [changeset(put(str(n))) for n in range(size)]
    store.push("s", push_of(*first))
    rest = [changeset(put(str(n))) for n in range(size)]
    verdicts = store.push("s", push_of(*first, *rest)).verdicts
    assert [v.duplicate for v in verdicts] == [True] * size + [False] * size
    assert [v.seq for v in verdicts] == list(range(1, 2 * size + 1))


def test_a_log_that_was_put_back_is_noticed(database_urls):
    """The head is the same, but its event is another one: the cached state is dropped."""
    owner, superuser = database_urls
    with Datastore(owner) as datastore:
        store = PostgresEventStore(datastore)
        store.push("s", push_of(changeset(put("a"), counter=1)))
        store.push("s", push_of(changeset(put("b"), counter=2)))
        with psycopg.connect(superuser, autocommit=True) as conn:
            conn.execute("ALTER TABLE events DISABLE TRIGGER USER")
            conn.execute("DELETE FROM events WHERE originator_version = 2")
            conn.execute(
                "UPDATE spaces SET head = 1, mark = %s",
                (next(iter(store.entries("s", through=1))).mark,),
            )
            conn.execute("UPDATE devices SET counter = 1")
        other = PostgresEventStore(datastore)
        other.push("s", push_of(changeset(put("c")), device=B))
        (verdict,) = store.push("s", push_of(changeset(put("b"), counter=2))).verdicts
        assert (verdict.seq, verdict.duplicate) == (3, False)


def test_a_restart_of_postgresql_costs_one_request(database_urls):
    """After one dead connection, the pool replaces all of them."""
    owner, superuser = database_urls
    with Datastore(owner, pool_size_max=8) as datastore:
        store = PostgresEventStore(datastore)
        store.push("s", push_of(changeset()))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: store.range_after("s", RangeQuery(0, 1)), range(64)))
        with psycopg.connect(superuser, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        failed = 0
        for _ in range(20):
            try:
                store.range_after("s", RangeQuery(0, 1))
            except StorageUnavailable:
                failed += 1
        assert failed <= 1


def test_a_database_that_is_not_there(tmp_path):
    """The error says that the push was not stored."""
    with Datastore(f"postgresql:///x?host={tmp_path}") as datastore:
        store = PostgresEventStore(datastore)
        with pytest.raises(StorageUnavailable):
            store.push("s", push_of(changeset()))
        with pytest.raises(StorageUnavailable):
            store.range_after("s", RangeQuery(0, 1))


def test_a_connection_that_breaks_before_the_write_has_stored_nothing(database_urls):
    """The connection breaks while the push waits for the lock, so the outcome is known."""
    owner, superuser = database_urls
    with Datastore(owner) as datastore, ThreadPoolExecutor(1) as threads:
        PostgresEventStore(datastore).push("s", push_of(changeset()))
        store = PostgresEventStore(datastore)  # with an empty cache, so it takes the locked path
        with psycopg.connect(owner) as blocker:
            blocker.execute("SELECT 1 FROM spaces FOR UPDATE")
            waiting = threads.submit(store.push, "s", push_of(changeset()))
            _terminate(superuser, "FOR UPDATE", blocker.info.backend_pid)
            with pytest.raises(StorageUnavailable):
                waiting.result(10)
        assert store.push("s", push_of(changeset())).verdicts[0].seq == 2


def test_a_connection_that_breaks_at_the_write_has_an_unknown_outcome(database_urls):
    """The connection breaks during the write, which may have been committed. A repeat of the
    push gets the right answer.
    """
    owner, superuser = database_urls
    push = push_of(changeset())
    with Datastore(owner) as datastore, ThreadPoolExecutor(1) as threads:
        store = PostgresEventStore(datastore)
        store.push("s", push_of(changeset()))
        with psycopg.connect(owner) as blocker:
            # An uncommitted event at the next seq delays the insert, after the lock.
            blocker.execute(
                "INSERT INTO events SELECT originator_id, 2, topic, state, gen_random_uuid(), "
                "device, received_at_ms, collections, salt, ops_hash FROM events"
            )
            waiting = threads.submit(store.push, "s", push)
            _terminate(superuser, "INSERT INTO events", blocker.info.backend_pid)
            with pytest.raises(OutcomeUnknown):
                waiting.result(10)
            blocker.rollback()
        (verdict,) = store.push("s", push).verdicts
        assert (verdict.seq, verdict.duplicate) == (2, False)


def _terminate(superuser: str, statement: str, but_not: int) -> None:
    """Breaks the connection that runs a statement, as soon as there is one."""
    deadline = time.monotonic() + 10
    with psycopg.connect(superuser, autocommit=True) as conn:
        while time.monotonic() < deadline:
            cut = conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE %s AND state = 'active' "
                "AND wait_event_type = 'Lock' AND pid NOT IN (%s, pg_backend_pid())",
                (f"%{statement}%", but_not),
            ).fetchall()
            if cut:
                return
            time.sleep(0.01)
    raise AssertionError(f"nobody waits in {statement}")


@pytest.mark.parametrize("code", ["53100", "53200", "55P03", "57014", "40P01", "58030", "25006"])
def test_a_server_that_says_not_now_has_stored_nothing(database, datastore, code):
    """A full disk, a lock, a timeout, a failover: the whole group shall try again later. The
    store skips the single retries, because each might wait as long.
    """
    with psycopg.connect(database) as conn:
        conn.execute(
            "CREATE FUNCTION not_now() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END$$"
        )
        conn.execute(
            "CREATE TRIGGER not_now BEFORE INSERT ON events FOR EACH ROW "
            f"WHEN (NEW.device = '{B}') EXECUTE FUNCTION not_now()"
        )
    store = PostgresEventStore(datastore)
    with pytest.raises(StorageUnavailable):
        store.push("s", push_of(changeset(), device=B))
    with pytest.raises(StorageUnavailable):
        store._append("s", [push_of(changeset(), device=A), push_of(changeset(), device=B)])
    assert store.push("s", push_of(changeset(), device=A)).verdicts[0].seq == 1


def test_few_bytes_do_not_ask_for_many(stores):
    """Records in answers are bounded like a page. A push that exceeds the bound is refused
    whole.
    """
    stores.push("s", push_of(changeset(put("big", text="x" * 3_000_000))))
    stores.project()
    many = [changeset(put("big", n=n), base=1) for n in range(4)]
    with pytest.raises(LimitExceeded, match="page_bytes_max"):
        stores.push("s", push_of(*many, wants_records=True))
    assert len(pull_all(stores, "s")) == 1
    receipt = stores.push("s", push_of(*many[:2], wants_records=True))
    assert [len(verdict.records) for verdict in receipt.verdicts] == [1, 1]


def text(size: int, id: str = "r") -> dict:
    return changeset(put(id, text="x" * size))


def test_few_bytes_do_not_load_many_events(datastore):
    """A push with the ids of large events is refused at the limit, and the device shall halve
    it. Its group is stored. Alone, each id is answered.
    """
    store = PostgresEventStore(datastore, limits=Limits(looked_up_bytes_max=100_000))
    large = [text(60_000) for _ in range(3)]
    for each in large:
        store.push("s", push_of(each))
    too_much, fine = store._append("s", [push_of(*large), push_of(changeset(), device=B)])
    assert isinstance(too_much, LimitExceeded) and "index" not in too_much.extra
    assert too_much.extra["limit"] == "looked_up_bytes_max"
    assert fine.verdicts[0].seq == 4
    for each in large:
        assert store.push("s", push_of(each)).verdicts[0].duplicate
    assert [v.seq for v in store.push("s", push_of(*large[:2])).verdicts] == [1, 2]


def test_pushes_that_are_too_much_together_go_alone(datastore):
    """Each device may repeat its push, even if others do so at the same moment."""
    store = PostgresEventStore(datastore, limits=Limits(looked_up_bytes_max=100_000))
    large = [text(60_000) for _ in range(4)]
    for each in large:
        store.push("s", push_of(each))
    outcomes = store._append("s", [push_of(each) for each in large])
    assert [outcome.verdicts[0].seq for outcome in outcomes] == [1, 2, 3, 4]


def test_one_event_that_is_named_by_many_is_not_decoded_by_all(datastore, monkeypatch):
    """The event is loaded once, and each push would decode it. The number of bytes to decode is
    bounded.
    """
    store = PostgresEventStore(datastore, limits=Limits(looked_up_bytes_max=100_000))
    large = text(60_000)
    store.push("s", push_of(large))
    decoded = []

    def counting(state):
        decoded.append(len(state))
        return decode_event(state)

    monkeypatch.setattr(push_decider, "decode_event", counting)
    monkeypatch.setattr(event_store, "ALONE_SECONDS_MAX", 0.0)
    other = changeset(put("other"), id=large["id"])
    outcomes = store._append("s", [push_of(other) for _ in range(9)])
    assert [type(o) for o in outcomes] == [IdReused] * 2 + [StorageUnavailable] * 7
    assert len([size for size in decoded if size > 60_000]) == 2


def test_guards_do_not_load_many_bytes(datastore, stores):
    """A push whose guards name large records is refused, and shall be halved. A single changeset
    is refused for good. The others of the group are decided.
    """
    for id in "abc":
        stores.push("s", push_of(text(60_000, id)))
    stores.project()
    store = PostgresEventStore(datastore, limits=Limits(looked_up_bytes_max=100_000))
    one_each = [changeset({**put(id, n=1), "if_seq": seq}) for seq, id in enumerate("abc", 1)]
    all_in_one = changeset(*({**put(id, n=1), "if_seq": seq} for seq, id in enumerate("abc", 1)))

    outcomes = store._append("s", [push_of(all_in_one), push_of(*one_each), push_of(one_each[0])])

    assert [type(o).__name__ for o in outcomes] == ["LimitExceeded", "LimitExceeded", "Receipt"]
    assert [o.extra.get("index") for o in outcomes[:2]] == [0, None]
    assert [status_of(o) for o in outcomes[:2]] == [422, 413]
    assert outcomes[2].verdicts[0].verdict == "stored"
    with pytest.raises(LimitExceeded, match="looked_up_bytes_max"):
        store.push("s", push_of(*(changeset(put(id, n=2)) for id in "abc"), wants_records=True))


def test_guards_wait_for_a_tail_of_many_bytes(datastore, stores):
    """A push folds the tail of the log only if the tail is short."""
    store = PostgresEventStore(datastore, limits=Limits(looked_up_bytes_max=100_000))
    for id in "abc":
        store.push("s", push_of(text(60_000, id)))
    guarded = push_of(changeset({**put("a"), "if_seq": 1}))
    with pytest.raises(ProjectionBehind):
        store.push("s", guarded)
    stores.project()
    assert store.push("s", guarded).verdicts[0].verdict == "stored"


def test_what_is_acknowledged_is_on_the_disk(database_urls):
    """Also if the role or the server is set to answer earlier."""
    owner, _ = database_urls
    with psycopg.connect(owner, autocommit=True) as conn:
        conn.execute(
            "ALTER ROLE foldlog IN DATABASE " + conn.info.dbname + " SET synchronous_commit = off"
        )
    with Datastore(owner) as datastore, datastore.rows() as cursor:
        assert cursor.execute("SHOW synchronous_commit").fetchone() == ("on",)
        assert cursor.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


@pytest.mark.parametrize("field", ["items", "required"])
def test_expensive_pushes_of_one_caller_delay_another_by_one(database, stores, field):
    """A group ends after the push that takes its budget of steps, whether the records must be read
    (`required`) or not. Nothing is refused."""
    schema = {"properties": {"a": {"items": {"anyOf": [{"const": n} for n in range(400)]}}}}
    if field == "required":
        schema["required"] = ["b"]  # the operations alone cannot decide
        schema["properties"]["b"] = True
    stores.define("s", "tasks", Proposal(JsonSchema.checked(schema, LIMITS)))
    stores.push("s", push_of(changeset(put("x", b=1, a=[])), device=new_id()))
    with psycopg.connect(database) as blocker:
        blocker.execute("SELECT 1 FROM spaces WHERE space = 's' FOR UPDATE")
        first = stores.submit("s", push_of(changeset(), device=new_id()), "greedy")
        queues = stores.log._group_commit._queues
        deadline = time.monotonic() + 10
        while queues.get("s") and time.monotonic() < deadline:
            time.sleep(0.001)
        greedy = []
        for _ in range(6):
            changesets = [changeset(put("x", a=[1] * 60)) for _ in range(6)]  # 1.3 million steps
            push = push_of(*changesets, device=new_id())
            greedy.append(stores.submit("s", push, "greedy"))
        modest = stores.submit("s", push_of(changeset(put("y", b=2)), device=new_id()), "modest")
        blocker.rollback()
    head = first.result(60).head
    seqs = [future.result(60).verdicts[0].seq for future in greedy]
    assert modest.result(60).verdicts[0].seq == head + 7, seqs
    assert {v.verdict for future in greedy for v in future.result().verdicts} == {"stored"}
    with stores.datastore.rows() as cursor:
        cursor.execute(
            "SELECT count(DISTINCT xmin::text) FROM events WHERE originator_version > %s", [head]
        )
        assert cursor.fetchone()[0] >= 6
