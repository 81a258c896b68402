"""Several web workers on one database: clients of one worker see the appends of another.

Each worker has its own connections, cache and follower, like a process.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from foldlog.domain.errors import StorageUnavailable
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.following import LOOK_SECONDS, Follower
from foldlog.infrastructure.postgres.log.tail_cache import LogTailCache
from foldlog.infrastructure.postgres.log.wakeups import Announcer
from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import services
from tests.acceptance.live import Connection, Served, Space, request_of, served, until
from tests.acceptance.test_live import follow_all, numbered, waiters
from tests.helpers import changeset

#: the bound of an arrival on a busy machine
ARRIVAL_SECONDS_MAX = 30.0


@pytest.fixture
def urls(database_urls):
    return database_urls


@pytest.fixture
def workers(urls):
    """Two workers."""
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            parts = stack.enter_context(services(urls[0], read_settings({})))
            found.append(stack.enter_context(served(parts.store)))
            parts.follower.start()
        yield found


@pytest.fixture
def here(workers):
    space = Space(workers[0].port)
    space.push(changeset())
    return space


@pytest.fixture
def there(workers, here):
    return Space(workers[1].port, here.name)


@pytest.fixture
def looks_are_rare(monkeypatch):
    monkeypatch.setattr("foldlog.infrastructure.postgres.log.following.LOOK_SECONDS", 3_600)


@pytest.fixture
def notifications_are_lost(monkeypatch):
    monkeypatch.setattr(Announcer, "announce", lambda self, space, head: None)


def arrival(workers: list[Served], here: Space, there: Space) -> float:
    """Returns the seconds until a stream and a wait at one worker see a push to the other."""
    stream = there.stream("after=1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(there.http.get, "events?after=1&wait=9")
        until(lambda: waiters(workers[1], there) == 2)
        time.sleep(0.1)  # both have seen that the log ends at 1
        began = time.monotonic()
        here.push(changeset())
        assert stream.seqs(1) == [2]
        assert waiting.result().json()["through"] == 2
    stream.close()
    return time.monotonic() - began


def test_an_append_reaches_another_worker_at_once(looks_are_rare, workers, here, there):
    """A notification alone brings the event, because the next look is an hour away."""
    assert arrival(workers, here, there) < ARRIVAL_SECONDS_MAX


def test_a_lost_notification_only_delays_the_event(notifications_are_lost, workers, here, there):
    assert arrival(workers, here, there) < ARRIVAL_SECONDS_MAX


@pytest.mark.seconds(5)
def test_every_follower_sees_each_event_once(workers, here):
    """
    Pushes go to both workers, and each follower switches between the workers.
    """
    follow_all(here, [worker.port for worker in workers], writers=4, pushes=40)
    for worker in workers:
        until(worker.is_idle)
        assert not worker.store.tails._watchers


@pytest.mark.seconds(5)
def test_every_follower_sees_each_event_once_without_notifications(
    notifications_are_lost, workers, here
):
    follow_all(here, [worker.port for worker in workers], writers=4, pushes=10)


def test_an_old_end_never_refuses_a_cursor(notifications_are_lost, workers, here, there):
    """
    A client of another worker may have a newer cursor than this worker's cache.
    """
    assert there.http.get("events").json()["through"] == 1
    for n in range(2, 12):
        here.push(changeset())
        page = here.http.get(f"events?after={n - 1}").json()
        for query in (f"events?after={n}", f"events?after={n}&mark={page['mark']}"):
            assert there.http.get(query).json()["through"] == n
        stream = there.stream(headers={"Last-Event-ID": str(n)})
        assert stream.head.status == 200
        stream.abort()
        again = there.http.get(f"events?after={n - 1}&mark={page['mark']}")
        assert again.status_code == 409, "that mark is of another event"


def test_polls_at_the_head_need_no_database(monkeypatch, workers, here):
    """
    Polls and waits at the end of a log are the most frequent requests.
    """
    page = here.http.get("events").json()
    counted = []
    get_connection = Datastore.get_connection

    def counting(self):
        if threading.current_thread().name != "foldlog-follower":
            counted.append(threading.current_thread().name)
        return get_connection(self)

    monkeypatch.setattr(Datastore, "get_connection", counting)
    query = f"events?after={page['through']}&mark={page['mark']}"
    until_seconds = time.monotonic() + LOOK_SECONDS + 0.5  # past a look
    while time.monotonic() < until_seconds:
        assert here.http.get(query).json()["events"] == []
        time.sleep(0.05)
    assert here.http.get(f"{query}&wait=1").json()["events"] == []
    assert here.http.post("sync", json=idle_sync(page)).json()["events"] == []
    assert counted == []


def idle_sync(page: dict) -> dict:
    sent_at = "2026-11-23T09:00:00.000Z"
    device = "00000000-0000-4000-8000-00000000000a"
    return {"device": device, "sent_at": sent_at, "after": page["through"], "mark": page["mark"]}


@pytest.mark.seconds(5)
def test_a_waiting_client_survives_a_restart_of_the_database(urls, workers, here, there):
    """
    All connections break. The stream stays open and delivers the next event.
    """
    stream = there.stream("after=1")
    until(lambda: waiters(workers[1], there))
    time.sleep(0.1)
    break_connections(urls[1])
    until(lambda: here.http.post("changesets", json=push_body()).status_code == 200)
    assert stream.seqs(1) == [2]


def push_body() -> dict:
    sent_at = "2026-11-23T09:00:00.000Z"
    device = "00000000-0000-4000-8000-00000000000a"
    return {"device": device, "sent_at": sent_at, "changesets": numbered(1)}


def break_connections(superuser_url: str) -> None:
    with psycopg.connect(superuser_url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_follower_retries_a_failed_read(database, monkeypatch):
    """
    Its thread must survive an outage, because all clients of this worker depend on it.
    """
    monkeypatch.setattr("foldlog.infrastructure.postgres.log.following.LOOK_SECONDS", 0.05)
    attempts = []

    def read_on(space: str) -> None:
        attempts.append(space)
        if len(attempts) < 3:
            raise StorageUnavailable

    with Datastore(database) as datastore:
        with datastore.committed() as cursor:
            cursor.execute("INSERT INTO spaces (space) VALUES ('s')")
        tails = LogTailCache()
        follower = Follower(datastore, tails, read_on)
        tails.watch("s", lambda: None)
        follower.start()
        until(lambda: len(attempts) > 3)
        follower.close()


def test_a_follower_learns_of_a_restored_database(urls, workers, here, there):
    """
    After the restore of an older backup, a waiting stream ends with a problem.
    """
    here.push(*numbered(3))
    stream = there.stream()
    assert stream.seqs(4) == [1, 2, 3, 4]
    mark = there.http.get("events?limit=2").json()["mark"]
    with psycopg.connect(urls[1]) as conn:
        conn.execute("ALTER TABLE events DISABLE TRIGGER USER")
        conn.execute("DELETE FROM events WHERE originator_version > 2")
        conn.execute("UPDATE spaces SET head = 2, mark = %s", [mark])
    problem = stream.next()
    assert problem.kind == "problem"
    assert json.loads(problem.data)["code"] == "log-behind"
    assert there.http.get("events?after=2").json()["head"] == 2


def test_many_spaces_are_followed_at_a_time(workers, here):
    """
    Each device waits for its own space alone.
    """
    spaces = [Space(workers[n % 2].port) for n in range(20)]
    for space in spaces:
        space.push(changeset())
    streams = []
    for n, space in enumerate(spaces):
        path = f"/v1/spaces/{space.name}/events/stream?after=1"
        client = Connection(workers[(n + 1) % 2].port)
        client.send(request_of(path))
        client.close()
        streams.append(space.stream("after=1", port=workers[(n + 1) % 2].port))
    began = time.monotonic()
    for space, stream in zip(spaces, streams, strict=True):
        space.push(changeset())
        assert stream.seqs(1) == [2]
    assert time.monotonic() - began < 10
