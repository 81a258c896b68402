"""A device whose changeset breaks a schema: the user's change is told of, kept, and not shown."""

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


def test_what_is_refused_is_told_kept_and_shown_as_the_server_has_it(device, defined):
    """
    The app showed the change as if it were done; now it shows the record as it is, and has the
    change to show to the user. Nothing of the queue waits behind it.
    """
    phone = device("phone")
    tasks = phone.collection("tasks")
    told, changed = [], []
    phone.callbacks.on_refusal(told.append)
    phone.callbacks.on_change(changed.append)
    milk = tasks.create(title="Milk", left=1)
    phone.sync()

    tasks.increment(milk.id, left=-2)
    assert tasks[milk.id]["left"] == -1
    tasks.update(milk.id, title="Oat milk")
    outcome = phone.sync()

    (refusal,) = told
    assert (refusal.code, refusal.state) == ("schema", "refused")
    assert refusal.detail == f"tasks/{milk.id} at /left: does not fit minimum 0"
    assert refusal.operations[0]["fields"] == {"left": -2}
    assert outcome.refused == [refusal.id] == [kept.id for kept in phone.refused()]
    assert tasks[milk.id].fields == {"title": "Oat milk", "left": 1}
    assert [change.record.fields["left"] for change in changed] == [1]
    assert phone.status().unsent == phone.status().unacknowledged == 0


def test_a_record_that_never_came_to_be_is_gone(device, defined):
    """
    It was shown from the moment it was made; the server has none, so there is none to show.
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


def test_it_is_repaired_and_goes_on(device, defined):
    """
    Made anew, on what is true now.
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


def test_a_definition_that_arrives_is_passed_over(device, defined, memory_store):
    """
    A device needs to know nothing of schemas.
    """
    phone = device("phone")
    phone.sync()
    memory_store.define("home", "notes", Proposal(JsonSchema.checked({}, LIMITS)))
    phone.sync()
    assert phone.status().lag == 0
