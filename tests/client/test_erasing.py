"""Pulling an erasure removes the values from records, queue and conflicts, and from the file."""

from __future__ import annotations

import random
import time
from unittest import mock

import pytest

from foldlog.client.replica import Replica
from foldlog.client.store import database as database_module
from foldlog.client.sync import synchroniser
from foldlog.client.sync.snapshots import SnapshotLoader
from tests.client.conftest import SPACE
from tests.new_device import states_of

R = ("tasks", "r")


def erase(store, *keys):
    return store.erase(SPACE, keys or [R], reason="asked to")


def bytes_of(replica: Replica) -> bytes:
    """Reads all files of an open replica."""
    path = replica._store.database.path
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def put(replica, id="r", **fields):
    replica.collection("tasks").put(id, fields)


def confirmed(replica):
    rows = replica._store.database.connection.execute(
        "SELECT collection, id FROM records WHERE confirmed IS NOT NULL"
    ).fetchall()
    return states_of(replica._store.view.confirmed(rows)[0])


def same_everywhere(store, *replicas):
    expected = states_of(
        {key: record for key, record in store._space(SPACE).records.items() if record.exists}
    )
    for replica in replicas:
        assert confirmed(replica) == expected


@pytest.fixture(autouse=True)
def _no_flushes(monkeypatch):
    """Saves the time of flushes, because these tests keep the power on."""
    monkeypatch.setattr(database_module, "SYNCHRONOUS", "OFF")


@pytest.fixture
def phone(device):
    return device("phone")


@pytest.fixture
def tablet(device):
    return device("tablet")


def test_synced_values_are_erased(phone, tablet, memory_store):
    """On both devices: the record, the sent changesets, and the conflicts."""
    put(phone, title="secret one", other="secret")
    phone.sync()
    tablet.sync()
    put(phone, title="secret two")
    put(tablet, title="secret three")
    phone.sync()
    tablet.sync()
    phone.sync()
    assert phone.conflicts() and tablet.conflicts()
    put(phone, "s", title="kept")
    phone.sync()
    erase(memory_store)

    for replica in (phone, tablet):
        assert b"secret" in bytes_of(replica)
        result = replica.sync()
        assert R in result.changed
        assert b"secret" not in bytes_of(replica)
        assert replica.conflicts() == []
        assert replica.collection("tasks").get("r") is None
        assert replica.collection("tasks")["s"].fields == {"title": "kept"}
    same_everywhere(memory_store, phone, tablet)


@pytest.mark.parametrize("guard", [None, "unchanged"])
def test_queued_values_are_erased(phone, tablet, memory_store, guard, monkeypatch):
    """The changeset is sent nevertheless, with its counter and its other operations."""
    put(phone, title="first")
    phone.sync()
    tablet.sync()
    erase(memory_store)
    with tablet.changeset(guard=guard):
        put(tablet, title="secret")
        put(tablet, "s", title="kept")
    server, tablet._runner.server = tablet._runner.server, None
    [before] = tablet.unsent()
    tablet._runner.server = server
    pulled = mock.patch.object(tablet._store.queue, "select", return_value=[])
    monkeypatch.setattr(synchroniser, "ROUNDS_MAX", 1)
    with pulled:  # as if the changeset was made just after the request
        tablet.sync()
    monkeypatch.undo()
    assert b"secret" not in bytes_of(tablet)
    [waiting] = tablet.unsent()
    assert (waiting["id"], waiting["counter"]) == (before["id"], before["counter"])
    assert waiting["ops"][0] == {"op": "delete", "collection": "tasks", "id": "r"}

    tablet.sync()
    phone.sync()

    assert tablet.status().unsent == 0
    if guard is None:
        assert phone.collection("tasks")["s"].fields == {"title": "kept"}
        assert tablet.collection("tasks")["s"].fields == {"title": "kept"}
    else:
        [refusal] = tablet.refused()
        assert refusal.code == "stale" and "fields" not in refusal.operations[0]
    states = [entry.state for entry in memory_store._space(SPACE).entries]
    assert b"secret" not in b"".join(states)
    same_everywhere(memory_store, phone, tablet)


def test_sent_values_that_are_stored_after_the_erasure_are_erased(phone, tablet, memory_store):
    """The log has the changeset after the erasure, which its base precedes."""
    put(phone, title="first")
    phone.sync()
    tablet.sync()
    erase(memory_store)
    put(tablet, title="secret")
    put(tablet, title="secret too")
    tablet.sync()  # pulls the erasure, and after it the device's own events
    phone.sync()
    assert b"secret" not in bytes_of(tablet)
    assert tablet.conflicts() == []
    assert tablet.status().unsent == tablet.status().unacknowledged == 0
    same_everywhere(memory_store, phone, tablet)


def test_a_repeat_after_a_lost_answer(phone, memory_store):
    """The server knows the changeset by its id, although the operations differ now."""
    put(phone, title="secret")
    server = phone._runner.server
    lost = mock.patch.object(server, "sync", side_effect=_then_lose(server.sync))
    with lost, pytest.raises(ConnectionError):
        phone.sync()
    erase(memory_store)
    result = phone.sync()
    assert not result.refused and phone.status().unacknowledged == 0
    assert b"secret" not in bytes_of(phone)
    same_everywhere(memory_store, phone)


def _then_lose(send):
    def lost(body):
        send(body)
        raise ConnectionError

    return lost


def test_a_snapshot_also_tells_of_erasures(phone, tablet, memory_store, monkeypatch):
    """Also if the record was created and deleted again after its erasure."""
    put(phone, title="secret")
    put(phone, "s", title="kept")
    phone.sync()
    put(phone, "q", title="secret, and waiting")
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 2)
    tablet.sync()
    tablet.collection("tasks").put("q", {"title": "theirs"})
    tablet.sync()
    erase(memory_store, R, ("tasks", "q"))
    tablet.sync()
    put(tablet, title="anew")
    tablet.sync()
    tablet.collection("tasks").delete("r")
    tablet.sync()
    for n in range(9):
        put(tablet, "s", n=n)
        tablet.sync()
    loaded = mock.Mock(wraps=phone._runner.server.snapshot)
    with mock.patch.object(phone._runner.server, "snapshot", loaded):
        phone.sync()
    assert loaded.called
    assert b"secret" not in bytes_of(phone)
    same_everywhere(memory_store, phone, tablet)


def test_values_written_while_a_snapshot_loads_are_erased(phone, tablet, memory_store, monkeypatch):
    """Their base precedes the erasure, although the device has loaded that page already."""
    put(phone, title="first")
    phone.sync()
    erase(memory_store)
    for n in range(9):
        put(tablet, "s", n=n)
        tablet.sync()
    monkeypatch.setattr(synchroniser, "SNAPSHOT_EVENTS_MIN", 2)
    check = mock.patch.object(
        SnapshotLoader, "_check_history", lambda self: put(phone, title="secret")
    )
    with check:  # between the last line and the end of the download
        phone.sync()
    assert b"secret" not in bytes_of(phone)
    assert b"secret" not in b"".join(e.state for e in memory_store._space(SPACE).entries)
    tablet.sync()
    same_everywhere(memory_store, phone, tablet)


def test_a_reading_connection_delays_the_erasure_of_bytes(phone, device, memory_store):
    """The reader still sees the old pages. The next sync empties the write-ahead log."""
    put(phone, title="secret")
    phone.sync()
    erase(memory_store)
    reader = device("phone")
    connection = reader._store.database.connection
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM records").fetchone()
    began = time.monotonic()
    phone.sync()
    assert time.monotonic() - began < 5
    assert phone.collection("tasks").get("r") is None
    connection.execute("COMMIT")
    phone.sync()
    assert b"secret" not in bytes_of(phone)


def test_a_writing_connection_delays_the_rewriting_of_the_file(phone, device, memory_store):
    """The file is written anew once; after that only the write-ahead log is left to empty."""
    put(phone, title="secret")
    phone.sync()
    erasure, database = phone._store.erasure, phone._store.database
    erasure.erase(("tasks", "r"), 2)
    other = device("phone")._store.database
    with other.transaction():
        began = time.monotonic()
        erasure.scrub()
        assert time.monotonic() - began < 5
    assert phone._store.meta.get("scrub") == "file"
    other.connection.execute("BEGIN")
    other.connection.execute("SELECT count(*) FROM records").fetchone()
    erasure.scrub()
    assert phone._store.meta.get("scrub") == "log"
    with mock.patch.object(type(database), "rewrite", side_effect=AssertionError):
        erasure.scrub()
        other.connection.execute("COMMIT")
        erasure.scrub()
    assert phone._store.meta.get("scrub") is None


@pytest.mark.parametrize("seed", range(12))
def test_all_bytes_of_many_values_are_erased(phone, memory_store, seed):
    """Values of all sizes, also on overflow pages and on pages that were split or joined."""
    rng = random.Random(seed)
    planted = {}
    for n in range(120):
        id = f"r{rng.randrange(40)}"
        text = f"planted-{n}-{rng.getrandbits(64):x}"
        planted.setdefault(id, []).append(text)
        put(phone, id, **{rng.choice("ab"): text * rng.choice([1, 5, 60, 400])})
        if rng.random() < 0.3:
            phone.sync()
    phone.sync()
    chosen = rng.sample(sorted(planted), 15)
    erase(memory_store, *(("tasks", id) for id in chosen))
    phone.sync()
    left = bytes_of(phone)
    assert not [text for id in chosen for text in planted[id] if text.encode() in left]
    same_everywhere(memory_store, phone)
