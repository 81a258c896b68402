"""A changeset that breaks a schema: the app gets a refusal, and the record is shown without it."""

from __future__ import annotations

import pytest

from foldlog.domain.collections import Proposal
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS

SCHEMA = {
    "properties": {"title": {"type": "string"}, "left": {"minimum": 0}},
    "required": ["title"],
}


@pytest.fixture
def defined(memory_store):
    memory_store.define("home", "tasks", Proposal(JsonSchema.checked(SCHEMA, LIMITS)))


def test_a_refused_change_is_reported_and_the_servers_record_is_shown(device, defined):
    """
    The app showed the change until the sync. Now it shows the server's record, and can show the
    refused change to the user. Later changesets of the queue are stored.
    """
    phone = device("phone")
    tasks = phone.collection("tasks")
    refusals, changed = [], []
    phone.callbacks.on_refusal(refusals.append)
    phone.callbacks.on_change(changed.append)
    milk = tasks.create(title="Milk", left=1)
    phone.sync()

    tasks.increment(milk.id, left=-2)
    assert tasks[milk.id]["left"] == -1
    tasks.update(milk.id, title="Oat milk")
    result = phone.sync()

    (refusal,) = refusals
    assert (refusal.code, refusal.state) == ("schema", "refused")
    assert refusal.detail == f"tasks/{milk.id} at /left: does not fit minimum 0"
    assert refusal.operations[0]["fields"] == {"left": -2}
    assert result.refused == [refusal.id] == [kept.id for kept in phone.refused()]
    assert tasks[milk.id].fields == {"title": "Oat milk", "left": 1}
    assert [change.record.fields["left"] for change in changed] == [1]
    assert phone.status().unsent == phone.status().unacknowledged == 0


def test_a_record_whose_creation_was_refused_is_removed(device, defined):
    """
    The device showed the record from its creation on; the server never stored it.
    """
    phone, tablet = device("phone"), device("tablet")
    note = phone.collection("tasks").create(done=True)
    assert phone.collection("tasks").get(note.id) is not None
    phone.sync()
    tablet.sync()
    assert phone.collection("tasks").get(note.id) is None
    assert tablet.collection("tasks").get(note.id) is None
    (refusal,) = phone.refused()
    assert refusal.operations[0]["fields"] == {"done": True}


def test_a_refused_changeset_is_repaired(device, defined):
    """
    The new changeset builds on the current records.
    """
    phone = device("phone")
    tasks = phone.collection("tasks")
    note = tasks.create(done=True)
    phone.sync()
    (refusal,) = phone.refused()
    with phone.repair(refusal.id) as operations:
        for op in operations:
            tasks.put(op["id"], **op["fields"], title="Milk")
    phone.sync()
    assert phone.refused() == []
    assert tasks[note.id].fields == {"done": True, "title": "Milk"}


def test_a_device_ignores_definitions(device, defined, memory_store):
    """
    Schemas are checked by the server alone.
    """
    phone = device("phone")
    phone.sync()
    memory_store.define("home", "notes", Proposal(JsonSchema.checked({}, LIMITS)))
    phone.sync()
    assert phone.status().lag == 0
