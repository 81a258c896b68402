"""Older forms of events are converted to the current one; newer forms are refused."""

from __future__ import annotations

import msgspec
import pytest

from foldlog.domain.events import decode_event
from foldlog.domain.upcasts import UPCASTER, UPCASTS, UnknownForm, Upcaster
from tests.unit.test_collections import DEFINED
from tests.unit.test_stored_form import REFUSED, STORED

#: One event of each form so far. Keep them as they are; a new form adds a line.
GOLDEN = {
    "changeset/1": STORED,
    "changeset/1 refused": REFUSED,
    "collection-defined/1": DEFINED,
}


@pytest.mark.parametrize("form", GOLDEN)
def test_every_form_that_ever_was_is_read(form):
    topic, _, _ = form.partition(" ")
    event = UPCASTER.decode(topic, GOLDEN[form])
    assert event.kind == topic.partition("/")[0]
    assert event.ops or event.body


def test_every_upcast_has_a_golden_event_to_begin_with():
    assert {f"{kind}/{version}" for kind, version in UPCASTS} <= GOLDEN.keys()


def test_an_event_in_the_newest_form_keeps_its_bytes():
    """Such an event is returned as it is, in its own bytes."""
    assert UPCASTER.upcast("changeset/1", STORED) is STORED
    assert UPCASTER.topic_of("changeset") == "changeset/1"


# An invented kind: in version 1, a `noted` had its note at the top of the body, in version 2 a list
# of notes.
PAST = Upcaster(
    {
        ("noted", 1): lambda event: {**event, "body": [event["body"]]},
        ("noted", 2): lambda event: {**event, "body": {"notes": event["body"]}},
    }
)


def noted(body) -> bytes:
    members = {"seq": 3, "kind": "noted", "id": "x", "received_at": "2026-11-23T09:00:00.000Z"}
    return msgspec.json.encode({**members, "body": body})


@pytest.mark.parametrize(
    ("topic", "body"), [("noted/1", "a"), ("noted/2", ["a"]), ("noted/3", {"notes": ["a"]})]
)
def test_an_older_form_is_converted_step_by_step(topic, body):
    """Each upcast knows its version and the next one. The rest of the event is unchanged."""
    event = PAST.decode(topic, noted(body))
    assert event == decode_event(noted({"notes": ["a"]}))


def test_new_events_are_written_in_the_newest_form():
    assert [PAST.topic_of(kind) for kind in ("noted", "changeset")] == ["noted/3", "changeset/1"]


@pytest.mark.parametrize(
    "topic", ["noted/4", "noted/0", "noted/x", "noted/", "noted", "/1", "changeset/2"]
)
def test_an_unknown_form_is_refused_by_name(topic):
    with pytest.raises(UnknownForm, match=topic):
        PAST.decode(topic, noted({"notes": []}))


def test_a_table_with_a_hole_is_a_mistake():
    with pytest.raises(ValueError, match="noted/1"):
        Upcaster({("noted", 2): dict})
