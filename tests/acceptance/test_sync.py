"""POST /v1/spaces/{space}/sync"""

from __future__ import annotations

from uuid import UUID

import pytest

from tests.helpers import A, B, changeset, put

from .conftest import assert_problem


def test_a_fresh_app_s_first_sync_makes_the_space(client):
    """
    It has no cursor. It learns the log's id, and gets an empty page.
    """
    answer = client.sync()

    assert answer.status_code == 200
    body = answer.json
    assert UUID(body.pop("log"))
    assert body == {
        "head": 0,
        "verdicts": [],
        "events": [],
        "through": 0,
        "mark": "",
        "more": False,
    }


def test_own_changesets_come_back_short_and_others_whole(client):
    """
    The device already holds its own operations, so a short form acknowledges them.
    """
    client.push(changeset(put("theirs")), device=B)
    own = changeset(put("ours"), counter=1)

    body = client.sync(own).json

    assert body["head"] == body["through"] == 2
    assert [v["seq"] for v in body["verdicts"]] == [2]
    theirs, ours = body["events"]
    assert [op["id"] for op in theirs["ops"]] == ["theirs"]
    assert "ops" not in ours
    assert (ours["id"], ours["device"], ours["counter"]) == (own["id"], A, 1)


def test_own_changesets_come_whole_when_asked_for(client):
    """
    A restored device lost the operations that it sent.
    """
    body = client.sync(changeset(put("ours")), own="full").json

    assert [op["id"] for op in body["events"][0]["ops"]] == ["ours"]


def test_a_round_trip_goes_on_from_its_cursor(client):
    """
    Each event comes once, and the mark shows that the log is the same.
    """
    first = client.sync(changeset()).json
    client.push(changeset(put("theirs")), device=B)

    second = client.sync(after=first["through"], mark=first["mark"]).json

    assert [e["seq"] for e in second["events"]] == [2]
    assert second["log"] == first["log"]


def test_a_sync_pages(client):
    """
    A device that was offline for a long time gets one page, and `more` is true.
    """
    client.push(*[changeset(put(str(n))) for n in range(5)])

    body = client.sync(limit=2, device=B).json

    assert [e["seq"] for e in body["events"]] == [1, 2]
    assert (body["through"], body["more"]) == (2, True)


def test_collections_filter_but_the_cursor_moves_on(client):
    """
    A device that follows one collection skips the events of others only once.
    """
    client.push(
        changeset(put("x", "notes")), changeset(put("y", "tasks")), changeset(put("z", "notes"))
    )

    body = client.sync(collections=["tasks"], device=B).json

    assert [e["seq"] for e in body["events"]] == [2]
    assert (body["through"], body["more"]) == (3, False)


def test_the_cursor_is_checked_before_anything_is_stored(client):
    """
    On another history `base` has another meaning, and the merge would be wrong.
    """
    log = client.sync(changeset()).json["log"]

    behind = client.sync(changeset(), after=7)
    changed = client.sync(changeset(), after=1, mark="0" * 16)

    assert_problem(behind, 409, "log-behind", log=log, head=1)
    assert_problem(changed, 409, "log-changed", log=log, head=1)
    assert client.get("events").json["head"] == 1


def test_an_idle_sync_checks_the_cursor_too(client):
    """
    A device with an empty queue must notice a restored server as well.
    """
    log = client.sync(changeset()).json["log"]

    answer = client.sync(after=1, mark="f" * 16)

    assert_problem(answer, 409, "log-changed", log=log, head=1)


def test_a_cursor_of_a_space_that_is_not_there_is_beyond_its_log(client):
    """
    A sync without a cursor creates the space. A sync with a cursor reports that the space was lost.
    """
    answer = client.sync(after=3, mark="f" * 16)

    assert answer.status_code == 409
    assert answer.json["code"] == "log-behind"


def test_an_idle_sync_takes_no_lock(client, store, app_with):
    """
    Most syncs have an empty queue, and ten thousand devices must not wait for the lock of one
    space.
    """
    pushes = []

    class Watched:
        range_after = store.range_after
        cached_range = store.cached_range

        def submit(self, *args):
            pushes.append(args)
            return store.submit(*args)

    watched = app_with(store=Watched())
    watched.sync()
    assert len(pushes) == 1  # it made the space

    watched.sync()
    watched.sync(changesets=[])

    assert len(pushes) == 1


@pytest.mark.parametrize("member", ["mark", "changesets", "limit", "collections", "own", "return"])
def test_null_is_not_absence(client, member):
    """
    Null is a value, and these members refuse it.
    """
    answer = client.sync(**{member: None})

    assert answer.status_code in (400, 422)
    assert answer.json["errors"][0]["pointer"] == f"/{member}"
