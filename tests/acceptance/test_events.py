"""GET /v1/spaces/{space}/events"""

from __future__ import annotations

from uuid import UUID

from foldlog.domain.ports import RangeQuery
from tests.helpers import A, B, changeset, put

from .conftest import assert_problem


def test_a_range_is_answered_in_the_stored_bytes(client, store):
    """
    A client hashes exactly the bytes that the log commits to.
    """
    client.push(changeset(put(title="Grüße 🐘", price=1.0)), changeset(put("y")))
    stored = store.range_after(client.space, RangeQuery(after=0, limit=10)).events

    answer = client.get("events")

    assert answer.status_code == 200
    assert b'"events":[%b],"through"' % b",".join(stored) in answer.data


def test_a_range_has_a_cursor_and_its_mark(client):
    """
    The exact form of a page, and of the event in it.
    """
    client.push(changeset(put("x", title="Milk"), counter=1, id=(id := str(UUID(int=7)))))

    body = client.get("events").json

    (event,) = body.pop("events")
    assert body.keys() == {"log", "head", "through", "mark", "more"}
    assert (body["head"], body["through"], body["more"]) == (1, 1, False)
    assert len(body["mark"]) == 16
    assert event.pop("received_at").endswith("Z")
    assert isinstance(event.pop("time"), int)
    assert event == {
        "seq": 1,
        "kind": "changeset",
        "verdict": "stored",
        "id": id,
        "device": A,
        "counter": 1,
        "base": 0,
        "made_at": "2026-11-23T09:00:00.000Z",
        "ops": [{"op": "put", "collection": "tasks", "id": "x", "fields": {"title": "Milk"}}],
    }


def test_paging_visits_every_event_once(client):
    """
    While `more` is true, a client pulls again after `through` with its `mark`.
    """
    client.push(*[changeset(put(str(n))) for n in range(5)])
    seen, after, mark, more = [], 0, "", True

    for _ in range(10):
        page = client.get(f"events?after={after}&mark={mark}&limit=2").json
        seen += [event["seq"] for event in page["events"]]
        after, mark, more = page["through"], page["mark"], page["more"]
        if not more:
            break

    assert (seen, more) == ([1, 2, 3, 4, 5], False)


def test_nothing_new_keeps_the_cursor(client):
    """
    The response is a 200 with an empty list and the caller's own cursor.
    """
    client.push(changeset())

    body = client.get("events?after=1").json

    assert (body["events"], body["through"], body["more"]) == ([], 1, False)


def test_a_puller_that_names_itself_gets_its_own_in_short(client):
    """
    With `own=full` it gets them with `ops`, as a restored device needs them.
    """
    client.push(changeset(put("a")))
    client.push(changeset(put("b")), device=B)

    anonymous = client.get("events").json["events"]
    named = client.get(f"events?device={A}").json["events"]
    full = client.get(f"events?device={A}&own=full").json["events"]

    assert ["ops" in event for event in anonymous] == [True, True]
    assert ["ops" in event for event in named] == [False, True]
    assert full == anonymous


def test_collections_are_separated_by_commas(client):
    """
    A changeset comes if it touches one of the collections.
    """
    client.push(*[changeset(put("x", name)) for name in ("a", "b", "c")])

    body = client.get("events?collections=a,c").json

    assert [event["seq"] for event in body["events"]] == [1, 3]
    assert body["through"] == 3


def test_a_cursor_of_another_log_is_refused(client):
    """
    The server was restored from an older backup, or has another history.
    """
    log = client.push(changeset()).json["log"]

    assert_problem(client.get("events?after=2"), 409, "log-behind", log=log, head=1)
    assert_problem(
        client.get(f"events?after=1&mark={'0' * 16}"), 409, "log-changed", log=log, head=1
    )


def test_an_unknown_space_is_not_found(client):
    """
    A read creates no space, so a mistyped name stays unknown.
    """
    assert_problem(client.get("events"), 404, "unknown-space")
