"""The OpenAPI document: complete, valid, and equal to the real responses."""

from __future__ import annotations

import copy
from functools import cache

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from foldlog.api.document.catalogue import BY_CODE
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.logging import path_template
from foldlog.api.shapes import examples
from foldlog.domain.changesets import Changeset, WireOperation
from foldlog.domain.events import Event
from foldlog.domain.merge import RecordView
from foldlog.domain.notes import Signer
from foldlog.domain.push_decider import Answer
from foldlog.domain.skipping import Skipped
from foldlog.domain.snapshot import SnapshotHeader, SnapshotPageEnd, SnapshotRecord
from tests.acceptance.conftest import ADMIN_TOKEN
from tests.helpers import A, B, a_token, add, changeset, delete, grow_trees, new_id, put

#: Required query parameters. All others have a default.
NEEDED = {"seq"}
#: Parameters that these paths require in addition.
NEEDED_OF = {
    "/v1/spaces/{space}/history": {"collection", "id"},
    "/v1/spaces/{space}/proof/consistency": {"from"},
}


@pytest.fixture
def document(http):
    return http.get("/openapi.json").json


def operations(document):
    return [
        (method, path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


def test_every_route_is_documented_and_nothing_else(app, document):
    """
    The paths of the document are exactly the routes of the app.
    """
    routes = {
        (method.lower(), path_template(rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert {(method, path) for method, path, _ in operations(document)} == routes


def test_every_operation_says_what_it_takes_and_answers(document):
    """
    Names are unique, parameters of the path are required, and every problem is a known one.
    """
    found = operations(document)
    ids = [described["operationId"] for _, _, described in found]
    assert len(ids) == len(set(ids))
    for _, path, described in found:
        assert described["summary"] and "tags" in described
        in_path = {p["name"] for p in described["parameters"] if p["in"] == "path"}
        assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for parameter in described["parameters"]:
            assert parameter["description"]
            is_needed = parameter["in"] == "path" or (
                parameter["name"] in NEEDED | NEEDED_OF.get(path, set())
            )
            assert parameter.get("required", False) is is_needed
        for status, response in described["responses"].items():
            if status != "200":
                problem = response["content"]["application/problem+json"]
                assert problem["examples"].keys() <= BY_CODE.keys()


def test_every_reference_leads_to_a_component(document):
    """
    Every component is also a valid JSON schema.
    """
    schemas = document["components"]["schemas"]

    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert {ref.rpartition("/")[2] for ref in references(document)} <= set(schemas)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def test_examples_are_what_their_schema_says(document):
    """
    People copy examples, so every example fits its schema.
    """
    for _, _, described in operations(document):
        contents = [*described.get("requestBody", {}).get("content", {}).values()]
        for response in described["responses"].values():
            contents += response["content"].values()
        for content in contents:
            if "schema" in content:
                examples = [e["value"] for e in content.get("examples", {}).values()]
                for example in [*examples, *[content[k] for k in ["example"] if k in content]]:
                    assert_valid(document, content["schema"], example)


def test_a_request_may_have_no_other_members(document):
    """
    The service refuses unknown members, so the document forbids them in requests.
    """
    schemas = document["components"]["schemas"]

    for name in ("PushBody", "SyncBody", "Changeset", "Operation"):
        assert schemas[name]["additionalProperties"] is False
    for name in ("Receipt", "Range", "Event", "Record"):
        assert schemas[name].get("additionalProperties", True) is True


@pytest.mark.parametrize(
    ("component", "struct"),
    [
        ("Changeset", Changeset),
        ("Operation", WireOperation),
        ("Verdict", Answer),
        ("Event", Event),
        ("Record", RecordView),
        ("SnapshotHeader", SnapshotHeader),
        ("SnapshotRecord", SnapshotRecord),
        ("SnapshotPageEnd", SnapshotPageEnd),
    ],
)
def test_a_documented_shape_has_the_members_of_the_domain_s(document, component, struct):
    """
    The domain decides which members are on the wire, and the document lists the same members.
    """
    documented = set(document["components"]["schemas"][component]["properties"])
    real = set(struct.__struct_encode_fields__)
    # Only the log marks an operation as erased: the service refuses it from a device.
    assert documented == real - ({"erased"} if struct is WireOperation else set())


@pytest.fixture
def admin_client(app_with):
    verifier = Signer("foldlog.test/log", b"k" * 32).verifier()
    return app_with(access=OpenAccess(ADMIN_TOKEN), verifiers=lambda space: [verifier])


def test_real_answers_are_what_the_document_says(admin_client, document, store, monkeypatch):
    """
    Each documented response fits its schema, and has only documented members.
    """
    client = admin_client
    local = {"op": "put", "collection": "tasks", "local_id": "1", "fields": {"n": None}}
    client.push(changeset(put("x", title="Milk"), local, made_at="2026-11-23T08:00:00Z", counter=1))
    pushed = client.push(
        changeset(put("x", title="Bread"), add("x", n=1), delete("y")),
        changeset(put("x"), guard="unchanged", made_at="2026-11-23T08:00:00Z"),
        device=B,
        **{"return": "records"},
    )
    client.filled(delete("x"))
    client.define("notes", {"required": ["text"]}, by="ada")
    client.filled(put("n", "notes", text=1))
    narrower = {"properties": {"text": {"type": "string"}}, "required": ["text"]}
    grow_trees(store)
    monkeypatch.setattr(
        store, "skip", lambda *_, **__: Skipped(2, 3)
    )  # no master table is halted here

    def as_admin(path, body, under="/v1"):
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        return client.http.post(f"{under}/spaces/{client.space}/{path}", json=body, headers=headers)

    granted = as_admin("tokens", examples.GRANT, "/v1/admin")
    code = as_admin("enrolments", examples.ISSUE_CODE, "/v1/admin")
    token, digest = a_token()
    body = {"code": code.json["code"], "device": new_id(), "digest": digest.hex()}
    enrolled = client.http.post(f"/v1/spaces/{client.space}/enrol", json=body)
    one_space = "/v1/spaces/{space}"
    one_collection = "/spaces/{space}/collections/{collection}"
    answers = {
        ("post", f"{one_space}/changesets"): pushed,
        ("post", f"{one_space}/sync"): client.sync(changeset(put("z", deep={"a": [1, "2", None]}))),
        ("get", f"{one_space}/events"): client.get(f"events?device={A}"),
        ("get", f"{one_space}/records"): client.get("records?changed_after=0"),
        ("get", f"{one_space}/records/{{collection}}/{{id}}"): client.get("records/tasks/x"),
        ("get", f"{one_space}/history/{{collection}}/{{id}}"): client.get("history/tasks/x"),
        ("get", f"{one_space}/history"): client.get("history?collection=tasks&id=x"),
        ("get", f"{one_space}/diff"): client.get("diff?from=1"),
        ("get", f"{one_space}/conflicts"): client.get("conflicts"),
        ("get", f"{one_space}/devices/{{device}}/ids"): client.get(f"devices/{A}/ids"),
        ("get", f"{one_space}/collections"): client.get("collections"),
        ("get", f"/v1{one_collection}"): client.get("collections/notes"),
        ("put", f"/v1/admin{one_collection}"): client.define("notes", narrower, dry_run=True),
        ("post", "/v1/admin/spaces/{space}/erase"): client.http.post(
            f"/v1/admin/spaces/{client.space}/erase",
            json={"records": [{"collection": "tasks", "id": "z"}], "reason": "asked to"},
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        ),
        ("post", "/v1/admin/spaces/{space}/skip"): client.http.post(
            f"/v1/admin/spaces/{client.space}/skip",
            json={"seq": 2, "reason": "written past the service"},
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        ),
        ("get", f"{one_space}/devices"): client.get("devices"),
        ("post", f"{one_space}/devices"): as_admin("devices", examples.REGISTER),
        ("post", f"{one_space}/devices/{{device}}/revoke"): as_admin(
            f"devices/{B}/revoke", examples.REVOKE
        ),
        ("post", "/v1/admin/spaces/{space}/tokens"): granted,
        ("post", "/v1/admin/spaces/{space}/enrolments"): code,
        ("post", "/v1/spaces/{space}/enrol"): enrolled,
        ("post", "/v1/spaces/{space}/trade"): client.http.post(
            f"/v1/spaces/{client.space}/trade",
            json={"device": new_id(), "digest": a_token()[1].hex()},
            headers={"Authorization": f"Bearer {token}"},
        ),
        ("get", "/v1/admin/spaces/{space}/tokens"): client.http.get(
            f"/v1/admin/spaces/{client.space}/tokens"
        ),
        ("post", "/v1/admin/spaces/{space}/tokens/{token}/revoke"): as_admin(
            f"tokens/{granted.json['id']}/revoke", examples.REVOKE, "/v1/admin"
        ),
        ("get", f"{one_space}/keys"): client.get("keys"),
        ("get", f"{one_space}/proof/inclusion"): client.get("proof/inclusion?seq=1"),
        ("get", f"{one_space}/proof/consistency"): client.get("proof/consistency?from=1"),
        ("get", f"{one_space}/proof/event/{{seq}}"): client.get("proof/event/2"),
        ("get", "/v1/limits"): client.http.get("/v1/limits"),
        ("get", "/healthz"): client.http.get("/healthz"),
        ("get", "/readyz"): client.http.get("/readyz"),
    }
    assert answers["get", f"{one_space}/conflicts"].json["conflicts"]
    told = answers["put", f"/v1/admin{one_collection}"].json
    assert told["reasons"] and told["check"]["first"]
    assert answers["get", f"{one_space}/history/{{collection}}/{{id}}"].json["versions"]
    assert answers["get", f"{one_space}/diff"].json["differences"]

    for method, path, described in operations(document):
        content = described["responses"]["200"]["content"].get("application/json", {})
        if "schema" in content:
            answer = answers.pop((method, path))
            assert answer.status_code == 200, answer.text
            assert_valid(document, content["schema"], answer.json)
    assert not answers


@pytest.mark.parametrize("path", ["events?x=1", "events", "records/tasks/never", "nowhere"])
def test_real_problems_are_what_the_document_says(client, document, path):
    """
    All problems have one form.
    """
    assert_valid(document, {"$ref": "#/components/schemas/Problem"}, client.get(path).json)


def assert_valid(document, schema, value):
    """Validates a value strictly: an undocumented member is an error."""
    components = _closed(msgspec.json.encode(document["components"]["schemas"]))
    validator = Draft202012Validator(
        {**schema, "components": {"schemas": components}}, format_checker=FormatChecker()
    )
    validator.validate(value)


@cache
def _closed(schemas: bytes):
    schemas = copy.deepcopy(msgspec.json.decode(schemas))
    for name, schema in schemas.items():
        if name != "Problem":
            schema.setdefault("additionalProperties", False)
    return schemas
