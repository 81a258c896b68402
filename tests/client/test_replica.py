"""The replica as an app uses it: local reads and writes, mostly without a server."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest

import foldlog
from foldlog.client.replica import Replica
from foldlog.client.store import view
from foldlog.client.store.database import Database


@pytest.fixture
def replica(tmp_path):
    with Replica(tmp_path / "app.db", space="home") as replica:
        yield replica


@pytest.fixture
def tasks(replica):
    return replica.collection("tasks")


def ids(records):
    return [record.id for record in records]


def test_a_write_is_shown_at_once(replica, tasks):
    """Before the first sync: the record, its status, and the queue."""
    milk = tasks.create(title="Milk", done=False)
    assert (milk["title"], milk.sync_status, milk.last_modified) == ("Milk", foldlog.WAITING, None)
    assert tasks.update(milk.id, {"done": True}, unset="title").fields == {"done": True}
    assert tasks.increment(milk.id, n=2, m=0.5).fields == {"done": True, "n": 2, "m": 0.5}
    assert tasks.increment(milk.id, n=1)["n"] == 3
    tasks.delete(milk.id)
    assert tasks.get(milk.id) is None and tasks.get(milk.id, deleted=True).is_deleted
    assert replica.status().unsent == 5 and len(tasks) == 0


def test_reopening_a_file(tmp_path):
    """The file keeps records, queue, device, space and URL."""
    with foldlog.open(tmp_path / "a.db", space="home", server="http://localhost:9") as one:
        one.stop()
        record, device = one.collection("tasks").create(x=1), one.device
    with foldlog.open(tmp_path / "a.db", keep_syncing=False) as again:
        assert again.collection("tasks")[record.id] == record
        assert (again.device, again.space) == (device, "home")
        assert again.status().unsent == 1
        assert again._runner.server is not None  # the URL is in the file


def test_a_changeset_is_all_or_nothing(replica, tasks):
    """A block includes inner blocks, reads see its changes, and an exception undoes them."""
    with replica.changeset():
        one = tasks.create(n=1)
        with replica.changeset():
            two = tasks.create(n=2)
        assert len(tasks) == 2
    (changeset,) = replica.unsent()
    assert [op["id"] for op in changeset["ops"]] == [one.id, two.id]

    with pytest.raises(ZeroDivisionError), replica.changeset():
        tasks.update(one.id, n=7)
        tasks.create(n=3)
        raise ZeroDivisionError
    assert tasks[one.id]["n"] == 1 and len(tasks) == 2
    assert len(replica.unsent()) == 1
    with replica.changeset():
        pass
    tasks.create()
    assert [c["counter"] for c in replica.unsent()] == [1, 2]


def test_query(tasks):
    """Equality by JSON type, lists of values, `None` for a missing field, order and pages."""
    for id, fields in {
        "a": {"n": 1, "done": True, "who": "x"},
        "b": {"n": 2, "done": False, "who": None},
        "c": {"n": 1.0, "done": 1, "who": "y"},
        "d": {"n": "1", "due date": 'on "that" day'},
    }.items():
        tasks.create(fields, id=id)
    tasks.create(id="gone")
    tasks.delete("gone")
    assert ids(tasks.query({"n": 1})) == ["a", "c"]
    assert ids(tasks.query({"done": True})) == ["a"]
    assert ids(tasks.query({"done": 1})) == ["c"]
    assert ids(tasks.query({"n": "1"})) == ["d"]
    assert ids(tasks.query({"who": None})) == ["b", "d"]
    assert ids(tasks.query({"who": ["x", "y"], "n": 1})) == ["a", "c"]
    assert ids(tasks.query({"who": []})) == []
    assert ids(tasks.query({"due date": 'on "that" day'})) == ["d"]
    assert ids(tasks.query(order_by="-n", limit=2, offset=1)) == ["b", "a"]
    assert ids(tasks.query(deleted=True)) == ["a", "b", "c", "d", "gone"]
    assert ids(tasks) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="dict"):
        tasks.query({"n": {}})


def nested(levels):
    return [] if levels == 0 else [nested(levels - 1)]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2**53},
        {"n": float("nan")},
        {"n": float("inf")},
        {"n": object()},
        {"x" * 300: 1},
        {"deep": nested(40)},
        {"half": "\ud83d"},
    ],
    ids=lambda fields: str(next(iter(fields)))[:4],
)
def test_invalid_values_are_refused_at_once(replica, tasks, fields):
    """Before they are queued, because the server would refuse them when the user is gone."""
    with pytest.raises(foldlog.NotARecord):
        tasks.create(fields)
    assert len(tasks) == 0 and not replica.unsent()


def test_missing_and_existing_records_raise(tasks):
    for change in (
        lambda: tasks["x"],
        lambda: tasks.update("x", n=1),
        lambda: tasks.increment("x", n=1),
        lambda: tasks.delete("x"),
        lambda: tasks.keep("x"),
    ):
        with pytest.raises(foldlog.RecordNotFound):
            change()
    tasks.put("x", n=1)
    with pytest.raises(foldlog.RecordExists):
        tasks.create(id="x")
    with pytest.raises(foldlog.NotARecord):
        tasks.increment("x", n=True)
    assert tasks.put("x", m=2).fields == {"n": 1, "m": 2}


@pytest.mark.parametrize("id", ["", "\0", "x" * 129, "\ud83d"])
def test_invalid_ids_are_refused(tasks, id):
    assert tasks.get(id) is None
    for change in (
        lambda: tasks.put(id, n=1),
        lambda: tasks.create(id=id) if id else tasks.put(id),
    ):
        with pytest.raises(foldlog.NotARecord):
            change()


@pytest.mark.parametrize("records", [1, 400])
def test_an_operation_costs_the_same_however_large_its_changeset(tmp_path, monkeypatch, records):
    """Counted in statements, in bytes written to the file, and in folded operations."""

    def cost(count: int) -> tuple[float, float, float]:
        statements, folded = [], []
        real = view.fold
        monkeypatch.setattr(
            view, "fold", lambda known, event: folded.extend(event.ops) or real(known, event)
        )
        with Replica(tmp_path / f"{count}.db", space="home") as replica:
            replica._store.database.connection.set_trace_callback(statements.append)
            with replica.changeset():
                for number in range(count):
                    replica.collection("tasks").put(f"r{number % records}", n=number)
            (changeset,) = replica.unsent()
        assert len(changeset["ops"]) == count
        monkeypatch.undo()
        written = sum(map(len, statements))
        return len(statements) / count, written / count, len(folded) / count

    few, many = cost(40), cost(400)
    assert all(after <= before * 1.05 for before, after in zip(few, many, strict=True)), (few, many)
    assert many[1] > 200, "parameters are counted, too"


def test_a_block_shows_its_own_changes(replica, tasks):
    """Each read in the block sees the queue and all earlier operations of the block."""
    tasks.put("n", count=1, title="one")
    with replica.changeset():
        assert tasks.increment("n", count=2).fields == {"count": 3, "title": "one"}
        assert tasks.update("n", title="two")["title"] == "two"
        tasks.delete("n")
        assert tasks.get("n") is None
        assert tasks.create(id="n", count=5).fields == {"count": 5}
        assert tasks.increment("n", count=2)["count"] == 7
        shown = tasks["n"]
    assert tasks["n"] == shown
    replica._store.view.refresh([("tasks", "n")])
    assert tasks["n"] == shown, "folding the queue gives the same"
    assert [len(changeset["ops"]) for changeset in replica.unsent()] == [1, 5]


def test_temporary_records_stay_here(replica, tasks):
    """They can be changed and purged. Only `keep` queues them."""
    one, two = tasks.create_temporary(n=1), tasks.create_temporary(n=2)
    assert one.sync_status == foldlog.TEMPORARY
    assert tasks.update(one.id, m=3).fields == {"n": 1, "m": 3}
    assert tasks.increment(one.id, n=5)["n"] == 6
    assert not replica.unsent() and len(tasks) == 2
    kept = tasks.keep(one.id)
    assert (kept.fields, kept.sync_status) == ({"n": 6, "m": 3}, foldlog.WAITING)
    tasks.delete(two.id)
    tasks.create_temporary()
    assert replica.purge_temporary() == 1
    assert ids(tasks) == [one.id]
    assert len(replica.unsent()) == 1


def test_other_files_are_left_alone(tmp_path):
    """A replica of another space, the database of another program, and a text file."""
    with foldlog.open(tmp_path / "a.db", space="home"):
        pass
    with pytest.raises(foldlog.WrongReplica, match="'home'"):
        foldlog.open(tmp_path / "a.db", space="work")
    with sqlite3.connect(tmp_path / "b.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    (tmp_path / "c.db").write_text("a letter, and a long one, too: " * 100)
    for name in ("b.db", "c.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(foldlog.WrongReplica):
            foldlog.open(tmp_path / name, space="home")
        assert len((tmp_path / name).read_bytes()) == len(before)
    with pytest.raises(foldlog.WrongReplica, match="needs the name"):
        foldlog.open(tmp_path / "d.db")
    with pytest.raises(foldlog.ClientError), foldlog.open(tmp_path / "a.db") as replica:
        replica.sync()


def test_many_threads_open_a_new_file_at_once(tmp_path):
    """All but one wait, although SQLite refuses a concurrent switch to WAL at once."""
    for number in range(60):
        path, start = tmp_path / f"{number}.db", Barrier(8)

        def opens(path=path, start=start):
            start.wait()
            Database(path).close()

        with ThreadPoolExecutor(8) as pool:
            for opening in [pool.submit(opens) for _ in range(8)]:
                opening.result()


def test_threads_take_turns(replica, tasks):
    """Increments of eight threads add up, and each changeset has its own counter."""
    tasks.create(id="n")

    def work():
        for _ in range(20):
            tasks.increment("n", count=1)

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tasks["n"]["count"] == 160
    assert [c["counter"] for c in replica.unsent()] == list(range(1, 162))


@pytest.mark.parametrize("name", ["", "a b", "..", "ä", "x" * 65])
def test_invalid_names_of_collections_are_refused(replica, name):
    with pytest.raises(ValueError, match="collection"):
        replica.collection(name)


def test_the_old_name_of_the_callbacks_still_works(replica):
    """For one release, with a warning that names the new one."""
    with pytest.warns(DeprecationWarning, match=r"use Replica\.callbacks"):
        assert replica.notices is replica.callbacks
