"""A database that refuses, hangs or only reads leads to a timely, temporary error."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.group_commit import COMMITTERS
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import (
    DATABASE_ERRORS,
    is_connection_error,
    is_temporary,
)
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import services
from tests.helpers import changeset, push_of, put

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE SQLSTATE '{state}'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON spaces FOR EACH ROW EXECUTE FUNCTION refuse()
"""
ALLOW = "DROP FUNCTION refuse CASCADE"


@pytest.mark.parametrize(
    "state",
    ["25006", "40001", "40P01", "53100", "53200", "53300", "55P03", "57014", "58030"],
)
def test_a_temporary_refusal_is_unavailable(database, state):
    """
    Each push of a refused group gets the error, and the database stores none of them. The same
    pushes succeed after the outage.
    """
    with Datastore(database) as datastore, psycopg.connect(database, autocommit=True) as conn:
        store = PostgresEventStore(datastore)
        store.push("s", push_of(changeset()))
        conn.execute(REFUSE.format(state=state).encode())
        pushes = [push_of(changeset(put(str(n)))) for n in range(5)]
        errors = [future.exception() for future in [store.submit("s", push) for push in pushes]]
        assert [type(error) for error in errors] == [StorageUnavailable] * 5
        conn.execute(ALLOW.encode())
        assert sorted(store.push("s", push).verdicts[0].seq for push in pushes) == [2, 3, 4, 5, 6]
        store.close()


@pytest.mark.seconds(10)
def test_a_locked_space_gets_timely_errors_and_delays_no_other(database):
    """All pushes to locked spaces fail within the lock timeout.

    With as many locked spaces as committers, another space waits for one group, once.
    """
    locked = [f"locked-{n}" for n in range(COMMITTERS)]
    with Datastore(database, seconds_max=5) as datastore, psycopg.connect(database) as blocker:
        store = PostgresEventStore(datastore)
        for space in ("free", *locked):
            store.push(space, push_of(changeset()))
        blocker.execute("SELECT FROM spaces WHERE space LIKE 'locked-%' FOR UPDATE")
        for seconds_max in (4.5, 1.5):
            told = [timed(store, space) for space in locked for _ in range(12)]
            time.sleep(0.1)
            free, waited = timed(store, "free")
            assert type(free.exception(10)) in (StorageUnavailable, type(None))
            assert {type(future.exception(10)) for future, _ in told} == {StorageUnavailable}
            assert max(*waited, *(took for _, [took] in told)) < seconds_max
        assert free.result().verdicts[0].verdict == "stored"
        blocker.rollback()
        assert [store.push(space, push_of(changeset())).head for space in locked] == [
            2
        ] * COMMITTERS
        assert not store._appender._contended
        store.close()


def timed(store, space: str) -> tuple[Future, list[float]]:
    """Submits a push. Returns its future, and a list that will hold the seconds it took."""
    began, took = time.monotonic(), []
    future = store.submit(space, push_of(changeset()))
    future.add_done_callback(lambda _: took.append(time.monotonic() - began))
    return future, took


@pytest.mark.parametrize("state", ["57P01", "57P02", "57P03", "57P05", "08006", "25P03", "25P04"])
def test_states_that_end_the_connection_leave_the_outcome_open(state):
    raised = psycopg.OperationalError()
    raised.sqlstate = state
    assert is_connection_error(raised) and is_temporary(raised)


def test_the_deadline_ends_a_hanging_connection(database):
    """A stopped server also stops its timeouts. The next connection is a new one."""
    with Datastore(database, pool_size_max=1, seconds_max=1) as datastore:
        with datastore.rows() as cursor:
            [(pid,)] = cursor.execute("SELECT pg_backend_pid()").fetchall()
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(DATABASE_ERRORS) as raised, datastore.rows() as cursor:
                cursor.execute("SELECT 1")
            assert is_connection_error(raised.value)
            assert 0.9 < time.monotonic() - began < 5
            with datastore.rows() as cursor:
                [(another,)] = cursor.execute("SELECT pg_backend_pid()").fetchall()
            assert another != pid
        finally:
            os.kill(pid, signal.SIGCONT)


def test_all_statements_of_a_borrowed_connection_share_its_time(database):
    with Datastore(database, seconds_max=1) as datastore:
        began = time.monotonic()
        with pytest.raises(DATABASE_ERRORS), datastore.rows() as cursor:
            for _ in range(9):
                cursor.execute("SELECT pg_sleep(0.3)")
        assert time.monotonic() - began < 2


def test_the_servers_timeout_comes_before_the_deadline(database):
    """The outcome of its refusal is certain, and the connection stays usable."""
    with Datastore(database, seconds_max=1) as datastore, datastore.rows() as cursor:
        with pytest.raises(psycopg.errors.QueryCanceled):
            cursor.execute("SELECT pg_sleep(5)")
        assert cursor.execute("SELECT 1").fetchall() == [(1,)]


def end_all_other_backends(database):
    with psycopg.connect(database) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.mark.parametrize(
    "read",
    [
        lambda store, datastore: store.range_after("s", RangeQuery(0, 10)),
        lambda store, datastore: store.range_after(
            "s", RangeQuery(0, 10, collections=frozenset({"tasks"}))
        ),
        lambda store, datastore: datastore.fetch_one("SELECT 1"),
        lambda store, datastore: datastore.fetch_all("SELECT 1"),
    ],
    ids=["page", "filtered page", "row", "rows"],
)
def test_a_read_on_a_dead_connection_is_repeated_on_a_new_one(database, read):
    """The first request after a restart of PostgreSQL used to be answered with 503."""
    with Datastore(database, pool_size_max=4, seconds_max=60) as datastore:
        store = PostgresEventStore(datastore)
        store.push("s", push_of(changeset()))
        with ExitStack() as held:
            for _ in range(4):
                held.enter_context(datastore.rows())
        end_all_other_backends(database)
        assert read(store, datastore)
        store.close()


def test_a_read_is_repeated_once(database):
    """A statement that breaks each connection gets no third one."""
    tried = []

    def breaks(conn):
        tried.append(conn.info.backend_pid)
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with Datastore(database, seconds_max=60) as datastore:
        with pytest.raises(StorageUnavailable):
            datastore.read(breaks)
        assert len(set(tried)) == len(tried) == 2


@pytest.mark.parametrize("state", ["40001", "53100", "57014"])
def test_a_read_that_is_refused_is_left_to_the_caller(database, state):
    """The connection is usable, so a second attempt would mostly meet the same refusal."""
    tried = []

    def refused(conn):
        tried.append(state)
        conn.execute(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$")

    with Datastore(database, seconds_max=60) as datastore, pytest.raises(StorageUnavailable):
        datastore.read(refused)
    assert tried == [state]


def test_a_command_waits_as_long_as_it_takes(database):
    with Datastore(database) as datastore, datastore.rows() as cursor:
        for name in ("statement_timeout", "lock_timeout"):
            assert cursor.execute(SQL("SHOW {}").format(Identifier(name))).fetchall() == [("0",)]


def test_callers_fail_fast_while_the_database_is_away(tmp_path):
    """The first caller waits for a connection. Later ones check the pool for a moment."""
    with Datastore(f"host={tmp_path} dbname=x", seconds_max=1) as datastore:
        waits = []
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(DATABASE_ERRORS), datastore.rows():
                pass
            waits.append(time.monotonic() - began)
        assert waits[0] > 0.35 and max(waits[1:]) < waits[0]


def test_readiness_tells_of_a_database_that_only_reads(database_urls, tmp_path: Path):
    """It also reports when the database accepts writes again."""
    url, superuser_url = database_urls
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    only_reads = SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    settings = read_settings({}, data=tmp_path, database_url=url)
    with (
        services(url, settings, seconds_max=5) as parts,
        psycopg.connect(superuser_url, autocommit=True) as conn,
    ):
        assert parts.ready() == {"database": "ok", "writes": "ok", "schema": "ok"}
        conn.execute(only_reads.format(Identifier(str(name)), SQL("on")))
        parts.datastore.pool.drain()  # as when connections grow old
        until(lambda: "only reads" in parts.ready()["writes"])
        conn.execute(only_reads.format(Identifier(str(name)), SQL("off")))
        until(lambda: parts.ready()["writes"] == "ok")


def test_readiness_hides_the_address_of_the_database(tmp_path: Path):
    """Host, port and role appear in the service's own log only."""
    url = f"host={tmp_path} user=secret-role dbname=secret-name"
    settings = read_settings({}, data=tmp_path, database_url=url)
    with services(url, settings, seconds_max=1) as parts:
        answer = str(parts.ready())
    assert "unreachable" in answer
    assert not any(part in answer for part in (str(tmp_path), "secret-role", "secret-name"))


def until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.1)
