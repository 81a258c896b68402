"""One test for each hard case of syncing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.resources import Resources
from foldlog.api.server import AsgiServer
from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.replica import Replica
from foldlog.client.sync import batch, synchroniser
from foldlog.client.sync.file_lock import file_lock
from foldlog.client.transport.server import HttpServer
from foldlog.domain.events import decode_event
from foldlog.domain.limits import Limits
from foldlog.infrastructure.memory.store import MemoryStore
from tests.client.serving import serving

from .device import YEAR_MS
from .network import DirectServer, problem
from .world import copy_of

SPACE = "home"
NOW = 1_795_424_400_000


class Service(DirectServer):
    """A service whose next answers are set by a test."""

    def __init__(self, store, limits):
        super().__init__(store, SPACE, limits)
        self.next_errors: list[Exception] = []
        self.loses_answers = False
        self.cuts_after_lines: int | None = None
        self.pushed: list[int] = []

    def sync(self, body):
        if self.next_errors:
            raise self.next_errors.pop(0)
        self.pushed.append(len(body.get("changesets", [])))
        answer = super().sync(body)
        if self.loses_answers:
            raise Unreachable("the answer was lost")
        return answer

    def snapshot(self, cursor):
        for number, line in enumerate(super().snapshot(cursor)):
            if number == self.cuts_after_lines:
                raise Unreachable("cut")
            yield line


class Home:
    """One service and the devices of a test."""

    def __init__(self, folder: Path, **limits):
        self.folder = folder
        self.limits = Limits(**limits)
        self.store = MemoryStore(now_ms=lambda: NOW, limits=self.limits)
        self.service = Service(self.store, self.limits)
        self.open_ones: list[Replica] = []

    def device(self, name: str = "a", *, clock_off: int = 0) -> Replica:
        replica = Replica(
            self.folder / f"{name}.db",
            space=SPACE,
            server=self.service,
            now_ms=lambda: NOW + clock_off,
        )
        self.open_ones.append(replica)
        return replica

    def copy(self, name: str, to: str) -> None:
        with (
            closing(sqlite3.connect(self.folder / f"{name}.db")) as source,
            closing(sqlite3.connect(self.folder / f"{to}.db")) as copy,
        ):
            source.backup(copy)

    def restore_service(self, spaces) -> None:
        self.store._spaces.clear()
        self.store._spaces.update(spaces)

    def log(self):
        return [decode_event(entry.state) for entry in self.store._space(SPACE).entries]

    def assert_all_equal(self, *replicas: Replica) -> None:
        for replica in (*replicas, *replicas):
            replica.sync()
        served = {
            (r.collection, r.id): (r.fields, r.is_deleted, r.seq)
            for r in self.store._space(SPACE).records.values()
            if r.exists
        }
        for replica in replicas:
            shown = {
                (r.collection, r.id): (r.fields, r.is_deleted, r.seq)
                for name in {key[0] for key in served}
                for r in replica.collection(name).query(deleted=True)
            }
            assert shown == served
            assert (replica.status().unsent, replica.status().unacknowledged) == (0, 0)
        ids = [event.id for event in self.log()]
        assert len(ids) == len(set(ids))


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    yield home
    for replica in home.open_ones:
        replica.close()


def tasks(replica):
    return replica.collection("tasks")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("unauthenticated", "the server does not accept the sign-in: sign in again"),
        ("unauthorized", "unauthorized: unauthorized"),  # the answer of a proxy, for example
    ],
)
def test_a_wrong_sign_in_holds_the_queue(home, status, code, why):
    a = home.device()
    tasks(a).put("milk", done=False)
    home.service.next_errors = [problem(status, code)]
    with pytest.raises(ServerProblem):
        a.sync()
    assert a.status().why_not == why
    assert a.status().unsent == 1
    a.sync()
    assert a.status().why_not is None
    home.assert_all_equal(a)


def test_413_halves_the_batch(tmp_path):
    home = Home(tmp_path, changesets_per_push_max=2)
    a = home.device()
    for number in range(7):
        tasks(a).put(f"t{number}")
    a.sync()
    assert a.status().unsent == 0
    assert max(home.service.pushed) >= 7, "the first request has all of them"
    assert [event.counter for event in home.log()] == [1, 2, 3, 4, 5, 6, 7]
    assert a.refused() == []
    a.close()


def test_a_changeset_that_is_too_large_alone_is_rejected(home):
    a = home.device()
    for name in ("one", "two", "three"):
        tasks(a).put(name)
    too_large = problem(413, "limit-exceeded")
    home.service.next_errors = [too_large, too_large]
    a.sync()
    assert [event.ops[0].id for event in home.log()] == ["two", "three"]
    assert [event.counter for event in home.log()] == [1, 2]
    [refusal] = a.refused()
    assert (refusal.state, refusal.code) == ("rejected", "limit-exceeded")
    assert tasks(a).get("one") is None


def test_a_refused_changeset_is_reported_and_repaired(home):
    a, b = home.device("a"), home.device("b")
    tasks(a).put("milk", n=0)
    a.sync()
    b.sync()
    tasks(b).put("milk", n=1)
    b.sync()
    told = []
    a.callbacks.on_refusal(told.append)
    with a.changeset(guard="unchanged"):
        tasks(a).put("milk", n=2)
    tasks(a).put("bread")
    a.sync()
    assert tasks(a)["milk"]["n"] == 1
    assert tasks(a).get("bread") is not None
    assert [refusal.code for refusal in told] == ["stale"]
    assert [refusal.id for refusal in a.refused()] == [told[0].id]

    with a.repair(told[0].id) as operations:
        tasks(a).put("milk", operations[0]["fields"])
    assert a.refused() == []
    home.assert_all_equal(a, b)
    assert tasks(b)["milk"]["n"] == 2


def test_a_refused_changeset_is_dropped(home):
    a, b = home.device("a"), home.device("b")
    with a.changeset(guard="unchanged"):
        tasks(a).put("milk", n=2)
    tasks(b).put("milk", n=1)
    b.sync()
    a.sync()
    [refusal] = a.refused()
    a.drop(refusal.id)
    assert a.refused() == []
    home.assert_all_equal(a, b)
    assert tasks(a)["milk"]["n"] == 1


def test_after_a_rejected_changeset_the_others_are_renumbered(tmp_path):
    home = Home(tmp_path, event_bytes_max=1_000)
    a = home.device()
    tasks(a).put("one")
    tasks(a).put("two", text="x" * 2_000)
    tasks(a).put("three")
    a.sync()
    [refusal] = a.refused()
    assert (refusal.state, refusal.code) == ("rejected", "limit-exceeded")
    assert [(event.ops[0].id, event.counter) for event in home.log()] == [("one", 1), ("three", 2)]
    home.assert_all_equal(a)
    a.close()


def test_a_lost_answer_repeats_no_change(home):
    a = home.device()
    tasks(a).put("taps", n=0)
    a.sync()
    tasks(a).increment("taps", n=1)
    home.service.loses_answers = True
    for _ in range(3):
        with pytest.raises(Unreachable):
            a.sync()
    assert tasks(a)["taps"]["n"] == 1
    home.service.loses_answers = False
    home.assert_all_equal(a)
    assert tasks(a)["taps"]["n"] == 1


def test_a_restored_device_pulls_an_own_event_that_it_does_not_know(home):
    a = home.device("a")
    tasks(a).put("milk", n=1)
    a.sync()
    home.copy("a", "restored")
    tasks(a).put("milk", n=2)
    a.sync()

    restored = home.device("restored")
    was = restored.device
    assert restored.sync().healed == ["restored"]
    assert restored.device != was
    assert tasks(restored)["milk"]["n"] == 2
    tasks(restored).put("milk", n=3)
    home.assert_all_equal(restored)
    assert [event.device for event in home.log()] == [was, was, restored.device]


def test_the_queue_of_a_restored_device_is_recognised_by_its_ids(home):
    a = home.device("a")
    tasks(a).put("taps", n=0)
    tasks(a).increment("taps", n=1)
    home.copy("a", "restored")
    a.sync()
    tasks(a).increment("taps", n=10)
    a.sync()

    restored = home.device("restored")
    tasks(restored).increment("taps", n=100)
    assert "device-forked" in restored.sync().healed
    home.assert_all_equal(a, restored)
    assert tasks(a)["taps"]["n"] == 111


def test_a_cloned_device_takes_a_new_id(home):
    a = home.device("a")
    tasks(a).put("taps", n=0)
    a.sync()
    home.copy("a", "clone")
    clone = home.device("clone")
    assert clone.device == a.device
    tasks(a).increment("taps", n=1)
    tasks(clone).increment("taps", n=2)
    a.sync()
    clone.sync()
    assert clone.device != a.device
    home.assert_all_equal(a, clone)
    assert tasks(a)["taps"]["n"] == 3


def test_a_gap_in_the_counters_is_closed(home):
    a = home.device()
    tasks(a).put("one")
    a.sync()
    home.store._space(SPACE).state.counters.clear()
    for name in ("two", "three"):
        tasks(a).put(name)
    a.sync()
    assert [event.counter for event in home.log()] == [1, 1, 2]
    tasks(a).put("four")
    home.assert_all_equal(a)
    assert home.log()[-1].counter == 3


def test_a_restored_server_gets_its_lost_changesets_again(home):
    a, b = home.device("a"), home.device("b")
    tasks(a).put("taps", n=0)
    a.sync()
    b.sync()
    backup = copy_of(home.store)
    tasks(a).increment("taps", n=1)
    tasks(a).put("milk")
    a.sync()
    b.sync()
    tasks(b).increment("taps", n=10)
    b.sync()
    a.sync()

    home.restore_service(backup)
    assert a.sync().healed == ["log-behind"]
    home.assert_all_equal(a, b)
    assert tasks(b)["taps"]["n"] == 11
    assert tasks(b).get("milk") is not None


def test_a_server_with_another_event_at_the_same_seq(home):
    a, b, c = home.device("a"), home.device("b"), home.device("c")
    tasks(a).put("milk", n=0)
    a.sync()
    c.sync()
    backup = copy_of(home.store)
    tasks(a).put("milk", n=1)
    a.sync()

    home.restore_service(backup)
    tasks(b).put("bread")
    b.sync()
    assert home.log()[-1].ops[0].id == "bread"
    assert a.sync().healed == ["log-changed"]
    home.assert_all_equal(a, b, c)
    assert tasks(c)["milk"]["n"] == 1


def test_a_server_loses_a_changeset_before_its_event_is_pulled(tmp_path):
    """The cursor precedes the lost event, so the mark still fits."""
    home = Home(tmp_path, page_bytes_max=1)  # one event a page
    a, b = home.device("a"), home.device("b")
    for name in ("one", "two", "three"):
        tasks(b).put(name)
    b.sync()
    backup = copy_of(home.store)
    tasks(a).put("milk")
    real = home.service.sync

    def once(body):
        home.service.sync = lambda body: _unreachable()
        return real(body)

    home.service.sync = once
    with pytest.raises(Unreachable):
        a.sync()
    assert (a.status().after, a.status().unacknowledged) == (1, 1)
    home.service.sync = real

    home.restore_service(backup)
    tasks(b).put("bread")
    b.sync()
    home.assert_all_equal(a, b)
    assert tasks(b).get("milk") is not None
    a.close()
    b.close()


def test_a_server_that_lost_everything(home):
    a, b = home.device("a"), home.device("b")
    tasks(a).put("milk", n=1)
    a.sync()
    b.sync()
    tasks(b).put("bread")
    b.sync()
    a.sync()
    home.restore_service({})
    home.assert_all_equal(a, b)
    assert tasks(a)["milk"]["n"] == 1
    assert tasks(a).get("bread") is not None


def test_marks_reach_back_far(home):
    """A device can then keep most of its history after an old backup was restored."""
    a = home.device()
    for number in range(3_000):
        with a._store.database.transaction():
            a._store.marks.add(10 * number + 1, "x")
            a._store.marks.thin_out()
    seqs = [seq for seq, _ in a._store.marks.all()]
    assert len(seqs) <= 250
    newest = seqs[-1]
    for age in (5_000, 10_000, 20_000):
        assert any(age / 2 <= newest - seq <= 2 * age for seq in seqs), age


def test_an_interrupted_snapshot_resumes_after_reopening(tmp_path, monkeypatch):
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 5)
    home = Home(tmp_path, page_snapshot_records=2)
    a = home.device("a")
    for number in range(8):
        tasks(a).put(f"t{number}", n=0)
        tasks(a).put(f"t{number}", n=1)
    a.sync()

    home.service.cuts_after_lines = 5  # header, two records, end of the page, one record
    late = home.device("late")
    with pytest.raises(Unreachable):
        late.sync()
    assert late._store.meta.get("snapshot")["done"] == 2
    assert len(tasks(late)) == 0, "records are shown when the snapshot is complete"
    late._store.database.close()
    tasks(a).put("t0", n=2)
    tasks(a).put("t9", n=1)
    a.sync()

    home.service.cuts_after_lines = None
    late = home.device("late")
    progress = []
    late.callbacks.on_progress(lambda done, total: progress.append((done, total)))
    late.sync()
    assert progress[0][0] == 4
    home.assert_all_equal(a, late)
    a.close()


def test_a_server_that_is_restored_while_a_snapshot_is_loaded(tmp_path, monkeypatch):
    """The snapshot replaces the cursor, so its mark is checked before."""
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 2)
    home = Home(tmp_path)
    a, b = home.device("a"), home.device("b")
    backup = copy_of(home.store)
    tasks(a).put("milk", n=1)
    a.sync()
    for number in range(5):
        tasks(b).put("bread", n=number)
    b.sync()
    home.service.cuts_after_lines = 1
    with pytest.raises(Unreachable):
        a.sync()
    assert a._store.meta.get("snapshot") is not None
    home.service.cuts_after_lines = None

    home.restore_service(backup)
    tasks(b).put("eggs")
    home.assert_all_equal(b, a)
    assert tasks(b)["milk"]["n"] == 1
    a.close()
    b.close()


def test_an_increment_in_a_snapshot_counts_once(home, monkeypatch):
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 2)
    a, b = home.device("a"), home.device("b")
    for number in range(5):
        tasks(b).put("taps", n=0, number=number)
    b.sync()
    tasks(a).put("taps")
    tasks(a).increment("taps", n=1)
    real, bodies = home.service.sync, []

    def only_once(body):
        bodies.append(body)
        return real(body) if len(bodies) == 1 else _unreachable()

    home.service.sync = only_once
    with pytest.raises(Unreachable):
        a.sync()
    assert a.status().after == 7
    assert tasks(a)["taps"]["n"] == 1, "the snapshot contains the acknowledged increment"
    home.service.sync = real
    home.assert_all_equal(a, b)


def test_a_change_made_during_a_rewind_has_the_shared_base(home):
    a, b = home.device("a"), home.device("b")
    tasks(b).put("milk", n=1)
    b.sync()
    a.sync()
    backup = copy_of(home.store)
    tasks(b).put("milk", n=2)
    b.sync()
    a.sync()
    assert a.status().after == 2

    home.restore_service(backup)
    home.service.cuts_after_lines = 0
    with pytest.raises(Unreachable):
        a.sync()
    tasks(a).put("milk", n=3)
    assert a._store.queue.select("waiting")[-1].base == 1
    home.service.cuts_after_lines = None
    home.assert_all_equal(b, a)


def test_the_event_of_a_refusal_replaces_its_lost_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "PUSH_MAX", 1)
    home = Home(tmp_path)
    a, b = home.device("a"), home.device("b")
    tasks(b).put("milk", n=1)
    b.sync()
    tasks(a).put("bread")
    with a.changeset(guard="unchanged"):
        tasks(a).put("milk", n=2)
    # The server got both before, in a larger batch.
    late = [queued.to_wire() for queued in a._store.queue.select("waiting")]
    body = {"device": a.device, "sent_at": "2026-11-23T09:00:00Z", "after": 0, "changesets": late}
    home.service.sync(body)
    a.sync()
    assert [refusal.code for refusal in a.refused()] == ["stale"]
    assert tasks(a)["milk"].fields == {"n": 1}
    assert tasks(a)["milk"].sync_status == 0
    home.assert_all_equal(a, b)
    a.close()
    b.close()


def test_a_server_is_restored_to_between_a_snapshot_and_one_of_its_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 2)
    home = Home(tmp_path, page_snapshot_records=1)
    a = home.device("a")
    for name in ("t0", "t1", "t1", "t1", "t1"):
        tasks(a).put(name, n=0)
    a.sync()
    backup = copy_of(home.store)

    late = home.device("late")
    pages = home.store._snapshot_page

    def page_after_a_push(here, place, bytes_max):
        if not place.id and late._store.meta.get("snapshot"):
            home.store._snapshot_page = pages
            home.store._lock.release()
            tasks(a).put("t0", n="lost")
            a.sync()
            a.close()
            home.open_ones.remove(a)
            home.store._lock.acquire()
        return pages(here, place, bytes_max)

    home.store._snapshot_page = page_after_a_push
    home.service.cuts_after_lines = 3  # header, one record, end of the page
    with pytest.raises(Unreachable):
        late.sync()
    home.service.cuts_after_lines = None

    home.restore_service(backup)
    b = home.device("b")
    tasks(b).put("t1", n=7)
    b.sync()
    home.assert_all_equal(late, b)


@pytest.mark.parametrize("years", [-1, 1])
def test_a_wrong_clock_decides_only_ties(home, years):
    a, b = home.device("a", clock_off=years * YEAR_MS), home.device("b")
    tasks(a).put("milk", n=1)
    home.assert_all_equal(a, b)
    tasks(b).put("milk", n=2)
    home.assert_all_equal(b, a)
    assert tasks(a)["milk"]["n"] == 2
    tasks(a).put("milk", n=3)
    home.assert_all_equal(a, b)
    assert tasks(b)["milk"]["n"] == 3


def test_a_clock_that_jumps_ahead_keeps_the_sent_changesets(home):
    a = home.device("a")
    tasks(a).put("one")
    a.sync()
    backup = copy_of(home.store)
    tasks(a).put("milk")
    a.sync()
    a._store.now_ms = lambda: NOW + YEAR_MS
    tasks(a).put("bread")
    a.sync()
    home.restore_service(backup)
    home.assert_all_equal(a)
    assert tasks(a).get("milk") is not None


# Real processes, over real HTTP.


@pytest.fixture
def url():
    """The address of a service in this process."""
    store = MemoryStore()
    app = create_app(store=store, master=store, ready=dict, access=OpenAccess())
    with Resources(4) as resources, serving(AsgiServer(app, resources)) as url:
        yield url


def process(code: str, path: Path, url: str) -> subprocess.Popen[str]:
    """Starts a process that opens the file as `replica`, runs `code`, and prints its progress."""
    program = f"""
import os, sys, time
from foldlog.client.replica import Replica
from foldlog.client.transport.server import HttpServer
server = HttpServer({url!r}, "home")
replica = Replica({str(path)!r}, space="home", server=server)
tasks = replica.collection("tasks")
def tell(what):
    print(what, flush=True)
def wait_for_the_end():
    tell("now")
    time.sleep(60)
{code}
tell("done")
"""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def kill_when_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()


def opened(path: Path, url: str) -> Replica:
    return Replica(path, space=SPACE, server=HttpServer(url, SPACE))


def events_at(url: str) -> list[dict]:
    return httpx.get(f"{url}/v1/spaces/home/events", params={"after": 0}).json()["events"]


@pytest.mark.seconds(5)
def test_two_processes_sync_one_file(tmp_path, url):
    code = """
tasks.put("taps")
for number in range(40):
    tasks.increment("taps", n=1)
    replica.sync()
while replica.status().unsent or replica.status().unacknowledged:
    replica.sync()
"""
    path = tmp_path / "a.db"
    children = [process(code, path, url) for _ in range(2)]
    for child in children:
        told, _ = child.communicate(timeout=60)
        assert told == "done\n"
    with opened(path, url) as replica:
        assert tasks(replica)["taps"]["n"] == 80
        assert replica._store.meta.get("earlier_devices") is None, "one device, not two"
    events = events_at(url)
    assert [event["counter"] for event in events] == list(range(1, 83))
    assert len({event["id"] for event in events}) == 82


def test_the_file_lock_excludes_other_syncs(home):
    a = home.device()
    tasks(a).put("milk")
    with file_lock(a._store.database.path):
        assert a.sync().pushed == 0
    assert a.sync().pushed == 1


@pytest.mark.seconds(5)
def test_a_kill_between_send_and_answer(tmp_path, url):
    code = """
tasks.put("taps", n=0)
replica.sync()
tasks.increment("taps", n=1)
real = server.sync
def sync(body):
    real(body)
    wait_for_the_end()
server.sync = sync
replica.sync()
"""
    path = tmp_path / "a.db"
    kill_when_ready(process(code, path, url))
    with opened(path, url) as replica:
        assert replica.status().unsent == 1
        assert tasks(replica)["taps"]["n"] == 1
        replica.sync()
        assert replica.status().unsent == 0
        assert tasks(replica)["taps"]["n"] == 1
    assert len(events_at(url)) == 2


@pytest.mark.seconds(5)
def test_a_kill_within_a_local_commit(tmp_path, url):
    """The uncommitted records and changesets are gone."""
    code = """
tasks.put("one")
replica._store.database.connection.execute("PRAGMA cache_size = 1")  # spills into the file
with replica.changeset():
    tasks.put("two", text="x" * 100_000)
    tasks.put("three", text="x" * 100_000)
    wait_for_the_end()
"""
    path = tmp_path / "a.db"
    kill_when_ready(process(code, path, url))
    with opened(path, url) as replica:
        assert [record.id for record in tasks(replica)] == ["one"]
        assert replica.status().unsent == 1
        tasks(replica).put("four")
        replica.sync()
    assert [event["counter"] for event in events_at(url)] == [1, 2]


@pytest.mark.seconds(5)
def test_a_kill_while_an_answer_is_applied(tmp_path, url):
    """Cursor, records and queue change together."""
    code = """
from foldlog.client.store.view import View
tasks.put("taps", n=0)
replica.sync()
tasks.increment("taps", n=1)
refresh = View.refresh
def slow(self, keys):
    refresh(self, keys)
    wait_for_the_end()
View.refresh = slow
replica.sync()
"""
    path = tmp_path / "a.db"
    kill_when_ready(process(code, path, url))
    with opened(path, url) as replica:
        assert (replica.status().unsent, replica.status().after) == (1, 1)
        replica.sync()
        assert (replica.status().unsent, replica.status().after) == (0, 2)
        assert tasks(replica)["taps"]["n"] == 1


def _unreachable():
    raise Unreachable("offline")
