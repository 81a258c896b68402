"""A connection that falls silent is given up within seconds; a statement at work is waited for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS, is_connection_error
from foldlog.infrastructure.postgres.connection.silence import SILENT_SECONDS
from tests.faults.proxy import Proxy

#: the deadline, which a slow machine reaches late
SECONDS_MAX = 120.0
LOCK = "SELECT FROM spaces FOR UPDATE"


@pytest.fixture
def proxy(cluster, data_folder):
    proxy = Proxy(data_folder / "proxy", Path(str(conninfo_to_dict(cluster.url)["host"])))
    yield proxy
    proxy.close()


@pytest.fixture
def through_proxy(database, proxy):
    with Datastore(make_conninfo(database, host=str(proxy.folder)), seconds_max=SECONDS_MAX) as own:
        yield own


@pytest.mark.seconds(10)
@pytest.mark.parametrize("fault", ["silence", "answer withheld"])
def test_a_silent_connection_is_dropped_and_its_locks_are_released(
    database, through_proxy, proxy, fault
):
    """The statement, or its answer, is lost, while both ends of the connection stay alive."""
    with psycopg.connect(database) as conn:
        conn.execute("INSERT INTO spaces (space) VALUES ('s')")
    proxy.arm(fault, "commit")
    began = time.monotonic()
    with pytest.raises(DATABASE_ERRORS) as raised, through_proxy.committed() as cursor:
        cursor.execute(LOCK)
    assert is_connection_error(raised.value)
    assert time.monotonic() - began < SECONDS_MAX / 2
    with psycopg.connect(database) as conn:
        conn.execute("SET lock_timeout = '60s'")
        conn.execute(LOCK)


@pytest.mark.seconds(12)
@pytest.mark.slow
def test_a_statement_at_work_is_waited_for(database, through_proxy):
    """A sleep, the processor, and a lock that another session holds."""
    seconds = 3 * SILENT_SECONDS
    with through_proxy.rows() as cursor:
        assert cursor.execute("SELECT pg_sleep(%s) IS NOT NULL", [seconds]).fetchall() == [(True,)]
        busy = """
        DO $$ BEGIN
            WHILE clock_timestamp() < statement_timestamp() + interval '3 s' LOOP END LOOP;
        END $$"""
        cursor.execute(busy)

    def lock() -> None:
        with through_proxy.committed() as cursor:
            cursor.execute("LOCK TABLE spaces")

    with ThreadPoolExecutor(1) as pool, psycopg.connect(database) as conn:
        conn.execute("LOCK TABLE spaces")
        waiting = pool.submit(lock)
        time.sleep(seconds)
        conn.rollback()
        waiting.result(60)


@pytest.mark.seconds(6)
def test_a_database_that_refuses_the_question_leaves_the_deadline(through_proxy, proxy):
    """The statement may be at work, so the connection keeps its deadline."""
    with through_proxy.rows() as cursor:
        proxy.is_cut = True  # for new connections
        assert cursor.execute("SELECT 1 FROM pg_sleep(3)").fetchall() == [(1,)]


@pytest.mark.seconds(6)
def test_one_question_at_a_time(through_proxy):
    """A slow database gets one more connection from a pool, however many statements wait."""
    with ThreadPoolExecutor(8) as pool, through_proxy.rows() as watching:
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'foldlog'"
        count += " AND datname = current_database()"

        def slow() -> None:
            with through_proxy.rows() as cursor:
                cursor.execute("SELECT pg_sleep(2.5)")

        working = [pool.submit(slow) for _ in range(8)]
        most = 0
        while not all(each.done() for each in working):
            [(now,)] = watching.execute(count).fetchall()
            most = max(most, now)
        assert most <= 12  # nine of the pool, one that asks, and ends of earlier ones
