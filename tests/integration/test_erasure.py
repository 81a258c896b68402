"""Erasing on PostgreSQL, together with projectors, rebuilds and other processes; and its traces."""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from foldlog.domain.events import decode_event
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.transfer import Importer
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.postgres.log.following import Follower
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.rebuild import rebuild as rebuild_module
from foldlog.infrastructure.postgres.rebuild.rebuild import Rebuilder
from foldlog.infrastructure.postgres.schema import migrate as migrate_module
from foldlog.infrastructure.postgres.schema.migrate import migrate, migrations
from foldlog.infrastructure.postgres.service_events import erasure as erasure_module
from foldlog.infrastructure.postgres.service_events.erasure import Eraser, vacuum
from tests.conftest import PostgresStores, create_database
from tests.erasing import Life, check_log, check_records
from tests.helpers import A, B, changeset, pull_all, push_of, put
from tests.integration.test_projector import assert_equals_fresh_fold

R, S = ("tasks", "r"), ("tasks", "s")


def everything(url: str) -> str:
    """Returns the content of all our tables, and the database's statistics about them."""
    with psycopg.connect(url) as conn:
        conn.execute("ANALYZE")
        tables = conn.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema = 'public' OR table_name IN ('pg_stats', 'pg_statistic_ext_data')"
        ).fetchall()
        assert ("public", "events") in tables and ("pg_catalog", "pg_stats") in tables
        found = []
        for table in tables:
            columns = conn.execute(
                "SELECT column_name, data_type FROM information_schema.columns "
                "WHERE (table_schema, table_name) = (%s, %s)",
                table,
            ).fetchall()
            for name, type in columns:
                text = "encode({}, 'escape')" if type == "bytea" else "{}::text"
                column = SQL(text).format(Identifier(name))
                rows = conn.execute(SQL("SELECT {} FROM {}").format(column, Identifier(*table)))
                found += [value for (value,) in rows if value is not None]
    return "\n".join(found)


def erase(stores, *keys, **parts):
    return stores.erase("s", keys or [R], reason="asked to", **parts)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_proofs_hold_and_values_are_nowhere(database_urls, seed, monkeypatch):
    """A random history with a lagging projector, with erasures in one transaction or several."""
    url, superuser = database_urls
    monkeypatch.setattr(rebuild_module, "CATCH_UP_EVENTS", 0)
    with Datastore(url) as datastore:
        stores = PostgresStores(datastore)
        life = Life(stores, "s", seed, between=stores.project)
        if seed % 3 == 0:
            # The events of one record usually fit one transaction. Here they need several.
            monkeypatch.setattr(
                stores.log, "erase", lambda *args, **more: _in_small_steps(stores, *args, **more)
            )
        life.live(60)
        check_log(life)
        check_records(life)
        assert life.erased_values and life.kept_values
        told = everything(superuser)
        assert not [value for value in life.erased_values if value in told]
        assert all(value in told for value in life.kept_values)
        Rebuilder(datastore, MasterProjection(), batch_events=7).rebuild("s", verify=True)
        check_import(stores, life)


def _in_small_steps(stores, space, keys, *, reason):
    eraser = Eraser(stores.datastore, stores.log.append_service_event, erase_events=2)
    return eraser.erase(space, keys, reason, None, lambda done, of: None)


def check_import(stores, life):
    """Checks that an export yields the same log elsewhere, with its erasures."""
    entries = list(stores.entries("s", through=life.head))
    log = stores.range_after("s", RangeQuery(0, 1)).log
    Importer(stores.datastore).run("copy", log, entries)
    assert list(stores.entries("copy", through=life.head)) == entries
    stores.project()
    assert_equals_fresh_fold(stores, "copy", life.head)
    for key, seq in life.erasures.items():
        late = changeset(put(key[1], key[0], a="too late"), base=seq - 1)
        stores.push("copy", push_of(late, device=B))
    assert b"too late" not in b"".join(pull_all(stores, "copy"))


def test_what_a_projector_remembers_between_its_turns(stores):
    """It caches records. An erased record must be dropped from the cache."""
    stores.push("s", push_of(changeset(put("r", x="secret"), put("s", x=1))))
    stores.project()
    erase(stores)
    stores.push("s", push_of(changeset(put("r", y=1), put("s", y=1), base=2)))
    stores.project()
    with stores.datastore.rows() as cursor:
        rows = cursor.execute("SELECT id, own_fields::text FROM records ORDER BY id").fetchall()
    assert rows == [("r", '{"y":1}'), ("s", '{"x":1,"y":1}')]
    Rebuilder(stores.datastore, MasterProjection()).rebuild("s", verify=True)


def test_an_erasure_waits_for_a_turn_that_is_under_way(stores, database):
    """The projector's batch has read the values and will write them. The erasure removes them
    afterwards.
    """
    stores.push("s", push_of(changeset(put("r", x="secret"))))
    done = threading.Event()

    def erasing():
        erase(stores)
        done.set()

    with psycopg.connect(database) as turn:
        turn.execute("SELECT 1 FROM projections WHERE space = 's' FOR UPDATE")
        thread = threading.Thread(target=erasing)
        thread.start()
        assert not done.wait(0.3)
        # Pushes go on meanwhile.
        stores.push("s", push_of(changeset(put("t"))))
        turn.execute(
            "INSERT INTO records (space, generation, collection, id, own_fields, is_deleted, seq, "
            "created_seq, writes, touched_seq, touched_seq_other) "
            "VALUES ('s', 1, 'tasks', 'r', '{\"x\":\"secret\"}', false, 1, 1, '[]', 1, 0)"
        )
        turn.execute("UPDATE projections SET position = 1 WHERE space = 's'")
    thread.join()
    assert "secret" not in everything(database)
    stores.project()
    assert_equals_fresh_fold(stores, "s", 3)


def test_in_the_middle_of_a_rebuild(stores, monkeypatch):
    """Both generations lose the record, and end up equal."""
    monkeypatch.setattr(rebuild_module, "CATCH_UP_EVENTS", 2)
    for n in range(9):
        ops = put("r", x=f"secret {n}"), put("s", x=n), put("t", x=n)
        stores.push("s", push_of(changeset(*ops, base=n // 2), device=B if n % 2 else A))
    stores.project()
    erased = []

    def report(space, position, head):
        if not erased:
            erased.append(erase(stores))
            with stores.datastore.rows() as cursor:
                found = cursor.execute(
                    "SELECT DISTINCT generation FROM records ORDER BY 1"
                ).fetchall()
                assert found == [(1,), (2,)]
                for table in MasterProjection.tables:
                    of_it = f"SELECT FROM {table} WHERE collection = 'tasks' AND id = 'r'"
                    assert cursor.execute(of_it).fetchall() == []

    rebuilder = Rebuilder(stores.datastore, MasterProjection(), report=report, batch_events=4)
    rebuilder.rebuild("s", verify=True)
    assert_equals_fresh_fold(stores, "s", 10)


def test_one_that_is_interrupted_is_gone_on_with(stores, monkeypatch):
    """The record is a tombstone at once. A second erasure erases the rest, for the same event."""
    for n in range(10):
        stores.push("s", push_of(changeset(put("r", x=f"secret {n}"))))
    stores.project()
    eraser = Eraser(stores.datastore, stores.log.append_service_event, erase_events=3)
    erase_in = erasure_module._erase_in

    def dies(cursor, space, key, seqs):
        if min(seqs) < 5:
            raise KeyboardInterrupt
        return erase_in(cursor, space, key, seqs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasure_module, "_erase_in", dies)
        eraser.erase("s", [R], "asked to", None, lambda done, of: None)
    stores.project()
    assert_equals_fresh_fold(stores, "s", 11)
    left = [s for s in pull_all(stores, "s") if b"secret" in s]
    assert [decode_event(state).seq for state in left] == [1, 2, 3, 4]  # the newest went first

    [erased] = erase(stores)

    assert (erased.seq, erased.events) == (11, 4)
    assert b"secret" not in b"".join(pull_all(stores, "s"))
    assert stores.range_after("s", RangeQuery(0, 1)).head == 11


def test_another_process_lets_go_of_what_it_keeps(stores, database):
    """It drops its cached events and states, after a notification or after its next poll."""
    stores.push("s", push_of(changeset(put("r", x="secret"))))
    with Datastore(database) as datastore:
        other = PostgresEventStore(datastore)
        other.read_tail("s")
        other.range_after("s", RangeQuery(0, 10))
        other.push("s", push_of(changeset(put("s", x=1))))
        assert other.cached_range("s", RangeQuery(1, 10)) is not None
        other.push("s", push_of(changeset(put("r", x="secret"))))
        erase(stores)
        Follower(datastore, other.tails, other.read_tail)._look()  # a poll, before any notification
        assert other.cached_range("s", RangeQuery(2, 10)) is None
        other.watch("s", lambda: None)
        Follower(datastore, other.tails, other.read_tail)._look()
        page = other.cached_range("s", RangeQuery(3, 10))
        assert [decode_event(event).kind for event in page.events] == ["record-erased"]
        assert other.cached_range("s", RangeQuery(2, 10)) is None
        kept = [e.state for tail in other.tails._tails.values() for e in tail.entries]
        assert kept and not any(b"secret" in state for state in kept)
        # ... and its cached state of the space
        other.push("s", push_of(changeset(put("r", x="secret"), base=3), device=B))
        assert b"secret" not in b"".join(pull_all(other, "s"))
        other.close()


def test_while_many_push_and_project(stores, database):
    """The values stay erased, all transactions end, and late changesets are stored without
    values.
    """
    stores.push("s", push_of(changeset(put("r", x="secret"))))
    stop = threading.Event()
    failed = []

    def again_and_again(action):
        while not stop.is_set():
            try:
                action()
            except Exception as exc:
                failed.append(exc)
                return

    def push():
        stores.push("s", push_of(changeset(put("r", x="secret"), put("s", x=1), base=0)))

    threads = [
        threading.Thread(target=again_and_again, args=(action,))
        for action in (push, push, stores.project)
    ]
    for thread in threads:
        thread.start()
    seqs = [erase(stores)[0].seq for _ in range(8)]
    stop.set()
    for thread in threads:
        thread.join()
    # All later changesets were made before the first erasure, so one event is enough.
    assert not failed and len(set(seqs)) == 1
    stores.project()
    assert "secret" not in everything(database)
    assert_equals_fresh_fold(stores, "s", stores.range_after("s", RangeQuery(0, 1)).head)


def test_two_that_erase_in_the_same_event(stores):
    """Each erases its own record, and keeps the erasure of the other."""
    for n in range(20):
        stores.push("s", push_of(changeset(put("r", x=f"secret {n}"), put("s", x=f"secret {n}"))))
    eraser = Eraser(stores.datastore, stores.log.append_service_event, erase_events=2)
    threads = [
        threading.Thread(target=eraser.erase, args=("s", [key], "why", None, lambda *_: None))
        for key in (R, S, R, S)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"secret" not in b"".join(pull_all(stores, "s"))
    assert stores.range_after("s", RangeQuery(0, 1)).head == 22


@pytest.mark.parametrize("full", [False, True])
def test_dead_rows_go(stores, database, full):
    """The old version of an erased event is a dead row until a vacuum, which an admin's call
    runs.
    """
    stores.push("s", push_of(changeset(put("r", x="secret"))))
    stores.project()
    stores.erase("s", [R], reason="why", tidies=not full)
    if full:
        vacuum(database, full=True)
    with stores.datastore.rows() as cursor:
        cursor.execute("SELECT relpages FROM pg_class WHERE relname = 'events'")
        assert cursor.fetchone()[0] == 1
        found = cursor.execute("SELECT ctid::text FROM events ORDER BY ctid").fetchall()
    # Two events, and the dead row of the rewritten one came first.
    assert found == ([("(0,1)",), ("(0,2)",)] if full else [("(0,2)",), ("(0,3)",)])


def test_the_statistics_of_an_older_database_are_gone(cluster, monkeypatch):
    """Older databases have collected statistics with values in them."""
    url, superuser = create_database(cluster, template="template0")
    before = {name: sql for name, sql in migrations().items() if name < "0006"}
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "migrations", lambda: before)
        migrate(url, from_scratch=False)
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO spaces (space) VALUES ('s')")
        conn.execute(
            "INSERT INTO events SELECT 's', n, 'x', convert_to('secret ' || n, 'UTF8'), "
            "gen_random_uuid(), NULL, 0, NULL, '', '' FROM generate_series(1, 50) n"
        )
        conn.execute("ANALYZE events")
    statistics = "SELECT count(*) FROM pg_stats WHERE tablename = 'events' AND attname = 'state'"
    with psycopg.connect(superuser) as conn:
        assert conn.execute(statistics).fetchone() == (1,)
    migrate(url)
    with psycopg.connect(superuser) as conn:
        conn.execute("ANALYZE events")
        assert conn.execute(statistics).fetchone() == (0,)
