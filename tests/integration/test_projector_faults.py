"""A fault of the database is never blamed on an event, and a space is up to date again soon after.

A trigger raises the SQLSTATE of each fault in the batches of one space. The proxy and the real
faults are in tests/faults.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from threading import Thread

import psycopg
import pytest

from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.wakeups import Wakeups
from foldlog.infrastructure.postgres.master.projection import MasterProjection
from foldlog.infrastructure.postgres.rebuild import projector as projector_module
from foldlog.infrastructure.postgres.rebuild.projector import Projector
from foldlog.infrastructure.postgres.status import status
from tests.conftest import PostgresStores
from tests.helpers import changeset, push_of, put, until

#: a full disk, a corrupted index
QUICK = ["53100", "XX002"]
#: memory, connections, read-only, serialization, deadlock, lock timeout, statement timeout,
#: input/output, internal error, corrupted table, missing privilege, missing table, an old plan
SLOW = [
    *("53200", "53300", "25006", "40001", "40P01", "55P03", "57014"),
    *("58030", "XX000", "XX001", "42501", "42P01", "0A000"),
]
#: a value out of range, a violated constraint, a row that is too large for an index
OF_THE_EVENT = ["22003", "23514", "54000"]
RAISE = """
CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE SQLSTATE '{state}'; END $$;
CREATE TRIGGER fault BEFORE UPDATE ON projections
    FOR EACH ROW WHEN (NEW.space = '{space}' AND NEW.position > OLD.position)
    EXECUTE FUNCTION fault()
"""


@contextmanager
def fault(url: str, state: str, *, space: str = "a"):
    """During the block, each batch of this space fails with this SQLSTATE."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(RAISE.format(state=state, space=space).encode())
        yield
        conn.execute("DROP FUNCTION fault CASCADE")


class Round:
    """The part of `Wakeups` that one round needs."""

    closed = False


def rounds(worker: Projector, times: int) -> None:
    """Runs this many rounds of a projector without its pauses."""
    for _ in range(times):
        worker._looking_at = worker._resting_until = 0.0
        for failing in worker._failing.values():
            failing.paused_until = 0.0
        worker.run_round(Round())


def line_of(datastore, space: str):
    return next(line for line in status(datastore, space) if line.projection == "master")


@pytest.fixture
def worker(datastore):
    stores = PostgresStores(datastore)
    for space in ("a", "b"):
        stores.push(space, push_of(*(changeset(put("x", n=n)) for n in range(20))))
    return Projector(datastore, MasterProjection())


@pytest.mark.parametrize(
    "state", [*QUICK, *(pytest.param(state, marks=pytest.mark.slow) for state in SLOW)]
)
def test_a_fault_never_halts_a_space(database, datastore, worker, state):
    """However long it lasts. The other space goes on, and a lasting fault is stored with its time.

    Nothing remains of it after the next batch, which has the full size again soon.
    """
    with fault(database, state):
        rounds(worker, 1)
        assert line_of(datastore, "b").lag == 0
        assert line_of(datastore, "a").failing_why is None  # a fault that passes is only logged
        rounds(worker, 2 * projector_module.FAILURES_MAX)
        line = line_of(datastore, "a")
        assert (line.position, line.stopped_at) == (0, None)
        assert line.failing_why is not None and line.failing_since is not None
    rounds(worker, 2)  # a batch of one event, and one of all others
    line = line_of(datastore, "a")
    assert (line.lag, line.stopped_at) == (0, None)
    assert (line.failing_why, line.failing_since) == (None, None)
    assert not worker._failing


@pytest.mark.parametrize("state", OF_THE_EVENT)
def test_an_error_of_the_data_halts_its_space(database, datastore, worker, state):
    with fault(database, state):
        rounds(worker, 1)
    line = line_of(datastore, "a")
    assert (line.position, line.stopped_at) == (0, 1)


@pytest.mark.parametrize("error", [MemoryError, OSError])
def test_a_fault_of_the_machine_is_no_fault_of_an_event(datastore, worker, monkeypatch, error):
    """The projector's own process may lack memory, or file descriptors."""
    with monkeypatch.context() as patch:

        def apply(to, events):
            raise error
            yield

        patch.setattr(worker._projection, "apply", apply)
        rounds(worker, 2 * projector_module.FAILURES_MAX)
    assert line_of(datastore, "a").stopped_at is None
    rounds(worker, 2)
    assert line_of(datastore, "a").lag == 0


def test_faults_and_broken_connections_are_counted_apart(database, datastore, worker, monkeypatch):
    """A full disk refuses statements, and then PostgreSQL crashes. Neither is a reason to halt."""
    with fault(database, "53100"):
        rounds(worker, projector_module.FAILURES_MAX)
    apply = worker._projection.apply

    def breaks(to, events):
        to.cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        yield from apply(to, events)

    with monkeypatch.context() as patch:
        patch.setattr(worker._projection, "apply", breaks)
        for _ in range(projector_module.FAILURES_MAX - 1):
            with pytest.raises(projector_module.DATABASE_ERRORS):
                rounds(worker, 1)
    assert line_of(datastore, "a").stopped_at is None


@pytest.mark.seconds(8)
@pytest.mark.parametrize("state", QUICK)
def test_a_running_projector_is_up_to_date_seconds_after_a_fault(database, datastore, state):
    """It used to halt the space for 30 seconds, and blamed its next event."""
    stores = PostgresStores(datastore)
    wakeups = Wakeups(database)
    with Datastore(datastore.url) as own:
        running = Thread(target=Projector(own, MasterProjection()).run, args=(wakeups,))
        with fault(database, state):
            stores.push("a", push_of(changeset(put("x", n=1))))
            running.start()
            until(lambda: line_of(datastore, "a").failing_why is not None)
        ended = time.monotonic()
        try:
            until(lambda: line_of(datastore, "a").lag == 0)
            assert time.monotonic() - ended < 5
        finally:
            wakeups.close()
            running.join(10)
