"""Syncing through the HTTP door: two devices, what they tell, and how they pace themselves."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import httpx
import pytest

import foldlog
from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.store.view import View
from foldlog.client.sync import applier
from foldlog.client.sync.results import SyncResult
from foldlog.client.sync.schedule import (
    POLL_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    SIGN_IN_RETRY_SECONDS,
    Schedule,
)
from foldlog.client.transport.server import HttpServer
from tests.asgi_client import asgi_transport


def test_a_change_reaches_the_other_device(device):
    """And comes back as its own acknowledgement: status 0, time and seq by the server."""
    phone, tablet = device("phone"), device("tablet")
    milk = phone.collection("tasks").create(title="Milk")
    assert phone.sync().pushed == 1
    assert tablet.sync().changed == [("tasks", milk.id)]
    here, there = phone.collection("tasks")[milk.id], tablet.collection("tasks")[milk.id]
    assert here == there
    assert (here.sync_status, here.seq) == (foldlog.SYNCED, 1)
    assert re.fullmatch(r"20\d\d-.*Z", here.last_modified)
    assert phone.status().unsent == phone.status().unacknowledged == phone.status().lag == 0


def test_what_arrives_is_told(device):
    """Changes, losses and refusals, by callback and by iterator; a failing callback is harmless."""
    phone, tablet = device("phone"), device("tablet")
    tasks, theirs = phone.collection("tasks"), tablet.collection("tasks")
    told = {"change": [], "loss": [], "refusal": []}
    phone.callbacks.on_change(lambda _: 1 / 0)
    phone.callbacks.on_change(told["change"].append)
    phone.callbacks.on_loss(told["loss"].append)
    phone.callbacks.on_refusal(told["refusal"].append)

    one = tasks.create(title="one")
    phone.sync()
    tablet.sync()
    assert told["change"] == []  # what this device typed it knows
    theirs.delete(one.id)
    two = theirs.create(title="two")
    tablet.sync()
    tasks.update(one.id, title="uno")
    with phone.changeset(guard="unchanged"):
        tasks.put(one.id, title="eins")
    with phone.callbacks.changes() as arriving:
        phone.sync()
        arrived = list(arriving(0.01))

    assert {change.id for change in told["change"]} == {one.id, two.id}
    assert arrived == told["change"]
    (loss,) = told["loss"]
    assert (loss.field, loss.rule, loss.lost["value"], loss.is_mine) == (
        "title",
        "deleted",
        "uno",
        True,
    )
    assert [(r.code, r.operations[0]["fields"]) for r in told["refusal"]] == [
        ("stale", {"title": "eins"})
    ]
    assert [(loss.number, loss.lost) for loss in phone.conflicts()] == [(1, told["loss"][0].lost)]
    assert phone.conflicts(after=1) == []
    assert phone.refused() == told["refusal"]


def test_refused_work_is_repaired_or_dropped(device):
    """It stays until then, changes nothing, and holds nothing up."""
    phone, tablet = device("phone"), device("tablet")
    tasks = phone.collection("tasks")
    one = tasks.create(n=1)
    phone.sync()
    tablet.sync()
    tablet.collection("tasks").update(one.id, n=2)
    tablet.sync()
    with phone.changeset(guard="unchanged"):
        tasks.update(one.id, n=3)
    with phone.changeset(guard="unchanged"):
        tasks.update(one.id, n=4)
    later = tasks.create(n=5)
    phone.sync()
    first, second = phone.refused()
    assert tasks[one.id]["n"] == 2 and tasks[later.id].sync_status == foldlog.SYNCED

    with phone.repair(first.id) as operations:
        tasks.update(operations[0]["id"], operations[0]["fields"])
    phone.drop(second.id)

    assert phone.refused() == [] and phone.status().unsent == 1
    phone.sync()
    assert tasks[one.id]["n"] == 3
    with pytest.raises(LookupError):
        phone.drop(second.id)
    with pytest.raises(LookupError), phone.repair(first.id):
        pass


def test_status_tells_why_not(tmp_path):
    """In words; and the queue is kept."""
    answers = {
        "down": lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused")),
        "who": lambda request: httpx.Response(401, json={"code": "unauthenticated"}),
        "busy": lambda request: httpx.Response(503, text="<html>", headers={"Retry-After": "7"}),
        "not us": lambda request: httpx.Response(200, text="hello"),
    }
    words = {}
    for name, answer in answers.items():
        server = HttpServer("http://x", "home", transport=httpx.MockTransport(answer))
        path = tmp_path / f"{name}.db"
        with foldlog.open(path, space="home", server=server, keep_syncing=False) as replica:
            replica.collection("tasks").create()
            with pytest.raises((ServerProblem, Unreachable)):
                replica.sync()
            words[name] = replica.status().why_not
            assert replica.status().unsent == 1
    assert words == {
        "down": "the server cannot be reached",
        "who": "the server does not accept the sign-in: sign in again",
        "busy": "unknown: status 503",
        "not us": "the server cannot be reached",
    }


def test_a_page_that_names_many_records_is_folded_some_at_a_time(device, monkeypatch):
    """Another device of the same person, or whoever has its token, could else fill our memory."""
    monkeypatch.setattr(applier, "RECORDS_AT_ONCE", 3)
    phone, tablet = device("phone"), device("tablet")
    for count in (1, 2, 5, 1, 1):
        with phone.changeset():
            for n in range(count):
                phone.collection("tasks").put(f"r{n}", n=count)
    phone.sync()
    loaded, confirmed = [], View.confirmed
    monkeypatch.setattr(
        View, "confirmed", lambda self, keys: loaded.append(len(keys)) or confirmed(self, keys)
    )
    tablet.sync()
    assert loaded[:3] == [2, 5, 1]
    assert {r.id: r.fields for r in tablet.collection("tasks")} == {
        r.id: r.fields for r in phone.collection("tasks")
    }


def test_it_syncs_by_itself(device):
    """In a thread, woken by a change; stopping finishes what is under way."""
    phone, tablet = device("phone", keep_syncing=True), device("tablet")
    milk = phone.collection("tasks").create(title="Milk")
    deadline = time.monotonic() + 10
    while phone.collection("tasks")[milk.id].sync_status != foldlog.SYNCED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert phone.status().is_syncing
    phone.stop()
    assert not phone.status().is_syncing and phone.status().next_try_seconds is None
    tablet.sync()
    assert tablet.collection("tasks")[milk.id]["title"] == "Milk"


def test_an_idle_device_costs_a_small_request(device):
    """No body to speak of, either way."""
    phone = device("phone")
    phone.collection("tasks").create(title="x" * 5_000)
    phone.sync()
    before = phone.status()
    phone.sync()
    after = phone.status()
    assert after.requests - before.requests == 1
    assert after.bytes_sent - before.bytes_sent < 250
    assert after.bytes_received - before.bytes_received < 250


def test_bodies_travel_compressed(device):
    phone = device("phone")
    for _ in range(50):
        phone.collection("tasks").create(text="the same words again " * 20)
    phone.sync()
    assert phone.status().bytes_sent < 50 * 400 / 3


def test_the_pace_adapts():
    """Quick after activity, slow when idle, backing off in trouble, and never in step."""
    schedule = Schedule(random.Random(1))
    busy, idle = SyncResult(pulled=1), SyncResult()
    assert schedule.after_success(busy, 0) < 2
    waits = [schedule.after_success(idle, 0) for _ in range(30)]
    assert waits[0] < 3 and POLL_SECONDS_MAX * 0.8 <= waits[-1] <= POLL_SECONDS_MAX * 1.2
    assert len(set(waits)) == 30
    assert schedule.after_success(busy, 0) < 2
    assert schedule.after_success(busy, 44.0) == 44.0  # the server asked to be left alone

    down = Unreachable()
    failures = [schedule.after_failure(down) for _ in range(15)]
    assert failures[0] < 1.3 and schedule.is_failing
    assert RETRY_SECONDS_MAX * 0.8 <= failures[-1] <= RETRY_SECONDS_MAX * 1.2
    assert schedule.after_failure(ServerProblem(503, {}, 1_000.0)) == 1_000.0
    assert schedule.after_failure(ServerProblem(401, {}, None)) > SIGN_IN_RETRY_SECONDS * 0.7
    schedule.after_success(idle, 0)
    assert not schedule.is_failing


GUIDE = (Path(__file__).parents[2] / "docs" / "how-to" / "use-the-client-library.md").read_text(
    "utf-8"
)


def test_the_guide_runs(device, app, tmp_path, monkeypatch):
    """Every Python block of the client's guide, one after another, on a real service."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    real = HttpServer.__init__

    def to_the_app(self, url, space, **options):
        transport = asgi_transport(app)
        real(self, "http://localhost", space, **options, transport=transport)

    monkeypatch.setattr(HttpServer, "__init__", to_the_app)
    exec(blocks[0], {})
    replica = foldlog.open("app.db")
    names = {"replica": replica, "tasks": replica.collection("tasks")}
    try:
        replica.sync()
        for block in blocks[1:]:
            exec(block, names)
        assert [record["title"] for record in names["tasks"]] == ["Bread"]
    finally:
        replica.close()
