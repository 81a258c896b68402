"""Erasing through HTTP, with the admin's token."""

from __future__ import annotations

import pytest

from foldlog.api.http.access import OpenAccess
from foldlog.domain.limits import Limits
from tests.acceptance.conftest import assert_problem
from tests.helpers import changeset, put

TOKEN = "an admin's token, and long enough"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(app_with):
    return app_with(access=OpenAccess(TOKEN))


def erase(client, headers=ADMIN, **body):
    body = {"reason": "asked to", **body}
    return client.http.post(f"/v1/admin/spaces/{client.space}/erase", json=body, headers=headers)


R = [{"collection": "tasks", "id": "r"}]


def test_a_record_is_erased_and_erased_again(client):
    client.filled(put("r", title="secret"), put("s", title="kept"))
    answer = erase(client, records=R, by="somebody")
    assert answer.status_code == 200, answer.text
    assert answer.json == {"dry_run": False, "records": [{**R[0], "events": 1, "seq": 2}]}
    client.caught_up(2)
    events = client.get("events?after=0")
    assert "secret" not in events.text and "kept" in events.text
    assert events.json["events"][1]["body"] == {**R[0], "reason": "asked to", "by": "somebody"}
    assert client.get("records/tasks/r").json["record"]["is_deleted"]
    assert erase(client, records=R).json["records"] == [{**R[0], "events": 0, "seq": 2}]
    assert "secret" not in client.get("snapshot").text


def test_a_dry_run_erases_nothing(client):
    client.filled(put("r", title="secret"))
    answer = erase(client, collection="tasks", where={"title": "secret"}, dry_run=True)
    assert answer.json == {"dry_run": True, "records": [{**R[0], "events": 1}]}
    assert client.get("events?after=0").json["head"] == 1


def test_all_that_a_query_names(client):
    client.filled(put("a", mail="x"), put("b", mail="x"), put("c", mail="y"))
    answer = erase(client, collection="tasks", where={"mail": "x"})
    assert [(r["id"], r["seq"]) for r in answer.json["records"]] == [("a", 2), ("b", 3)]
    assert erase(client, collection="tasks", where={"mail": "x"}).json["records"] == []


def test_a_device_that_is_late_is_told_as_ever(client):
    client.filled(put("r", title="one"))
    erase(client, records=R)
    late = changeset(put("r", title="secret"), base=1)
    assert client.push(late).json["verdicts"][0]["verdict"] == "stored"
    own = client.sync(after=0).json["events"]
    assert [event.get("erased") for event in own] == [[0], None, [0]]


def test_only_an_admin_may(client, app_with):
    client.filled(put("r"))
    assert_problem(erase(client, headers={}, records=R), 401, "unauthenticated")
    wrong = {"Authorization": "Bearer another"}
    assert_problem(erase(client, headers=wrong, records=R), 401, "unauthenticated")
    assert_problem(erase(app_with(), records=R), 403, "forbidden")
    assert client.get("events?after=0").json["head"] == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"records": []}, "/records"),
        ({"records": [{"collection": "tasks"}]}, "/records/0/id"),
        ({"records": [{"collection": "t/s", "id": "r"}]}, "/records/0/collection"),
        ({"records": R * 101}, "/records"),
        ({"records": R, "reason": 7}, "/reason"),
        ({"records": R, "dry_run": "yes"}, "/dry_run"),
        ({"records": R, "why": "x"}, "/why"),
        ({"collection": "tasks", "where": {}}, "/where"),
    ],
)
def test_what_is_wrong_is_named(client, body, pointer):
    client.filled(put("r"))
    problem = erase(client, **body)
    assert (problem.status_code, problem.json["code"]) == (400, "invalid-request")
    assert problem.json["errors"][0]["pointer"] == pointer


def test_it_must_be_said_what_and_why(client):
    client.filled(put("r"))
    for body in ({}, {"collection": "tasks"}, {"where": {"a": 1}}, {"records": R, "reason": " "}):
        assert erase(client, **body).json["code"] == "invalid-request"


def test_what_is_not_there(client):
    assert_problem(erase(client, records=R), 404, "unknown-space")
    client.filled(put("s"))
    assert_problem(erase(client, records=R), 404, "unknown-record")


def test_a_call_has_its_limit(app_with):
    client = app_with(access=OpenAccess(TOKEN), limits=Limits(erase_records_max=1))
    client.filled(put("a", x=1), put("b", x=1))
    answer = erase(client, collection="tasks", where={"x": 1})
    assert_problem(answer, 413, "limit-exceeded", limit="erase_records_max", value=1)
    assert client.get("events?after=0").json["head"] == 1
