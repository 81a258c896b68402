"""Collections by HTTP: an admin defines them, callers read them, and devices get refusals."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import ADMIN_TOKEN, assert_problem
from tests.helpers import add, changeset, put

SCHEMA = {
    "properties": {"title": {"type": "string"}, "n": {"minimum": 0}},
    "required": ["title"],
    "additionalProperties": False,
}


def test_a_collection_is_defined_and_read(client):
    """
    An admin defines it, and every caller reads it.
    """
    answer = client.define("tasks", SCHEMA, by="ada", if_version=0)
    assert answer.status_code == 200, answer.text
    nothing = {"checked": 0, "violating": 0, "first": [], "is_complete": True}
    assert answer.json == {
        "collection": "tasks",
        "version": 1,
        "seq": 1,
        "reasons": [],
        "check": nothing,
    }
    wider = {**SCHEMA, "required": []}
    assert client.define("tasks", wider).json["check"] is None

    (listed,) = client.get("collections").json["collections"]
    defined_at = listed.pop("defined_at")
    assert listed == {"collection": "tasks", "version": 2, "seq": 2}
    last = client.get("collections/tasks").json
    versions = last.pop("versions")
    assert last == {**listed, "defined_at": defined_at, "schema": wider}
    assert [(v["version"], v.get("by")) for v in versions] == [(1, "ada"), (2, None)]
    assert client.get("collections/tasks?version=1").json["schema"] == SCHEMA


def test_a_device_is_told_what_it_broke(client):
    """
    The verdict has the present record, without the refused values. The other changesets are stored.
    """
    client.define("tasks", SCHEMA)
    client.push(changeset(put("a", title="Milk", n=1)))
    answer = client.sync(
        changeset(add("a", n=-2), base=2), changeset(put("a", n=3), base=2), after=2
    )
    refused, stored = answer.json["verdicts"]
    assert (refused["verdict"], stored["verdict"]) == ("refused", "stored")
    assert refused["refusal"] == {
        "code": "schema",
        "detail": "tasks/a at /n: does not fit minimum 0",
    }
    assert refused["records"][0]["fields"] == {"title": "Milk", "n": 1}
    event = client.get("events?after=2").json["events"][0]
    assert (event["verdict"], event["refusal"]) == ("refused", refused["refusal"])


def test_only_an_admin_defines(client, app_with):
    assert_problem(client.define("tasks", SCHEMA, token="somebody-else-s"), 401, "unauthenticated")
    assert_problem(app_with().define("tasks", SCHEMA, token=ADMIN_TOKEN), 403, "forbidden")
    assert_problem(client.get("collections"), 404, "unknown-space")


def test_what_stands_against_a_definition_is_a_problem(client):
    """
    Each problem has the details for a correction. A dry run has them in its response.
    """
    client.filled(put("a", title=5))
    found = {"id": "a", "path": "/title", "reason": 'does not fit type "string"'}
    check = {"checked": 1, "violating": 1, "first": [found], "is_complete": True}
    assert client.define("tasks", SCHEMA, dry_run=True).json["check"] == check
    assert_problem(client.define("tasks", SCHEMA), 409, "schema-violated", **check)
    assert client.define("tasks", SCHEMA, force=True).json["seq"] == 2
    reason = {
        "path": "/required",
        "reason": "requires n, which the version before allows to be missing",
    }
    narrower = {**SCHEMA, "required": ["title", "n"]}
    assert client.define("tasks", narrower, dry_run=True).json["reasons"] == [reason]
    assert_problem(
        client.define("tasks", narrower), 409, "schema-not-additive", version=1, reasons=[reason]
    )
    assert_problem(
        client.define("tasks", narrower, if_version=0), 409, "version-conflict", version=1
    )
    assert_problem(client.get("collections/notes"), 404, "unknown-collection")
    assert [v["version"] for v in client.get("collections").json["collections"]] == [1]


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "strin"}, "/type"),
        ({"properties": {"a": {"requird": []}}}, "/properties/a/requird"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1/"}}}, "/properties/a/$ref"),
    ],
)
def test_an_invalid_schema_is_told_with_its_place(client, schema, pointer):
    assert_problem(client.define("tasks", schema), 422, "invalid-schema", pointer=pointer)


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"schema": True}, "/schema"),
        ({"schema": {}, "dry_run": 1}, "/dry_run"),
        ({"schema": {}, "force": "yes"}, "/force"),
        ({"schema": {}, "by": ""}, "/by"),
        ({"schema": {}, "by": "a\0"}, "/by"),
        ({"schema": {}, "if_version": -1}, "/if_version"),
        ({"schema": {}, "dry-run": True}, "/dry-run"),
        ({}, "/schema"),
    ],
)
def test_a_body_is_read_strictly(client, members, pointer):
    """
    A mistyped `dry_run` is refused, so it defines no collection.
    """
    url = f"/v1/admin/spaces/{client.space}/collections/tasks"
    answer = client.http.put(url, json=members, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    assert answer.status_code == 400
    assert pointer in [error.get("pointer") for error in answer.json["errors"]]


def test_limits_of_a_schema(client):
    """
    The limits are published and enforced.
    """
    limits = client.http.get("/v1/limits").json
    large = {"title": "x" * limits["schema_bytes_max"]}
    told = client.define("tasks", large)
    assert (told.status_code, told.json["limit"]) == (422, "schema_bytes_max")
    deep = json.loads('{"not":' * 40 + "{}" + "}" * 40)
    assert_problem(client.define("tasks", deep), 422, "invalid-schema", pointer="")
