"""Syncing over HTTP: two devices, their callbacks, and the waits between syncs."""

from __future__ import annotations

import random
import re
import time

import httpx
import pytest

import foldlog
from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.store.view import View
from foldlog.client.sync import applier
from foldlog.client.sync.results import SyncResult
from foldlog.client.sync.schedule import (
    LONG_RETRY_SECONDS,
    POLL_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    Schedule,
)
from foldlog.client.transport.server import HttpServer


def test_a_change_reaches_the_other_device(device):
    """Its own event acknowledges the change: status 0, with the time and the seq of the server."""
    phone, tablet = device("phone"), device("tablet")
    milk = phone.collection("tasks").create(title="Milk")
    assert phone.sync().pushed == 1
    assert tablet.sync().changed == [("tasks", milk.id)]
    here, there = phone.collection("tasks")[milk.id], tablet.collection("tasks")[milk.id]
    assert here == there
    assert (here.sync_status, here.seq) == (foldlog.SYNCED, 1)
    assert re.fullmatch(r"20\d\d-.*Z", here.last_modified)
    assert phone.status().unsent == phone.status().unacknowledged == phone.status().lag == 0


def test_callbacks(device):
    """For changes, losses and refusals, and as an iterator. A failing callback is harmless."""
    phone, tablet = device("phone"), device("tablet")
    tasks, theirs = phone.collection("tasks"), tablet.collection("tasks")
    calls = {"change": [], "loss": [], "refusal": []}
    phone.callbacks.on_change(lambda _: 1 / 0)
    phone.callbacks.on_change(calls["change"].append)
    phone.callbacks.on_loss(calls["loss"].append)
    phone.callbacks.on_refusal(calls["refusal"].append)

    one = tasks.create(title="one")
    phone.sync()
    tablet.sync()
    assert calls["change"] == []  # own changes are not reported
    theirs.delete(one.id)
    two = theirs.create(title="two")
    tablet.sync()
    tasks.update(one.id, title="uno")
    with phone.changeset(guard="unchanged"):
        tasks.put(one.id, title="eins")
    with phone.callbacks.changes() as arriving:
        phone.sync()
        arrived = list(arriving(0.01))

    assert {change.id for change in calls["change"]} == {one.id, two.id}
    assert arrived == calls["change"]
    (loss,) = calls["loss"]
    assert (loss.field, loss.rule, loss.lost["value"], loss.is_mine) == (
        "title",
        "deleted",
        "uno",
        True,
    )
    assert [(r.code, r.operations[0]["fields"]) for r in calls["refusal"]] == [
        ("stale", {"title": "eins"})
    ]
    assert [(loss.number, loss.lost) for loss in phone.conflicts()] == [(1, calls["loss"][0].lost)]
    assert phone.conflicts(after=1) == []
    assert phone.refused() == calls["refusal"]


def test_refused_changesets_are_repaired_or_dropped(device):
    """Until then they stay, change no record, and leave the rest of the queue alone."""
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


def test_status_tells_why_syncing_fails(tmp_path):
    """In words for the user. The queue stays."""
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
        "busy": "unknown: status 503, not from Foldlog but from a proxy or another server",
        "not us": "another server answered: sign in to the network, or check the URL",
    }


def test_a_page_with_many_records_is_folded_in_parts(device, monkeypatch):
    """Because another device could fill this device's memory with one changeset."""
    monkeypatch.setattr(applier, "RECORDS_AT_ONCE", 3)
    phone, tablet = device("phone"), device("tablet")
    tablet.sync()  # a new device asks for the head first, with a page of one event
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


def test_the_background_thread_syncs(device):
    """A local change wakes the thread. `stop` waits for a running sync."""
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
    """Both bodies are small."""
    phone = device("phone")
    phone.collection("tasks").create(title="x" * 5_000)
    phone.sync()
    before = phone.status()
    phone.sync()
    after = phone.status()
    assert after.requests - before.requests == 1
    assert after.bytes_sent - before.bytes_sent < 250
    assert after.bytes_received - before.bytes_received < 250


def test_bodies_are_compressed(device):
    phone = device("phone")
    for _ in range(50):
        phone.collection("tasks").create(text="the same words again " * 20)
    phone.sync()
    assert phone.status().bytes_sent < 50 * 400 / 3


def test_the_schedule_adapts():
    """Short waits after activity, long ones when idle or failing, and all with jitter."""
    schedule = Schedule(random.Random(1))
    busy, idle = SyncResult(pulled=1), SyncResult()
    assert schedule.after_success(busy, 0) < 2
    waits = [schedule.after_success(idle, 0) for _ in range(30)]
    assert waits[0] < 3 and POLL_SECONDS_MAX * 0.8 <= waits[-1] <= POLL_SECONDS_MAX * 1.2
    assert len(set(waits)) == 30
    assert schedule.after_success(busy, 0) < 2
    assert schedule.after_success(busy, 44.0) == 44.0  # the server asked for it

    down = Unreachable()
    failures = [schedule.after_failure(down) for _ in range(15)]
    assert failures[0] < 1.3 and schedule.is_failing
    assert RETRY_SECONDS_MAX * 0.8 <= failures[-1] <= RETRY_SECONDS_MAX * 1.2
    assert schedule.after_failure(ServerProblem(503, {}, 1_000.0)) == 1_000.0
    assert schedule.after_failure(ServerProblem(401, {}, None)) > LONG_RETRY_SECONDS * 0.7
    schedule.after_success(idle, 0)
    assert not schedule.is_failing
