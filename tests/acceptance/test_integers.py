"""Every integer of the OpenAPI document at the edges of its type, against each kind of store.

Parameters and bodies come from the document, so a new operation is tested without a change here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.domain.access import Grant, Role
from foldlog.domain.collections import Proposal
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import Limits
from tests.helpers import a_token, changeset, grow_trees, new_id, push_of, put

from .conftest import ADMIN_TOKEN
from .live import served

LIMITS = Limits(
    wait_seconds_max=1,
    stream_seconds_max=0,
    at_least_wait_seconds_max=0,
    wrong_tokens_per_second_per_address=0,
    requests_per_second_per_caller=0,
    requests_per_second_per_address=0,
)
EDGES = [-1, 0, 1, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 10**30]
#: texts that some parsers take for an integer
TEXTS = ["1e3", " 1", "+1", "1_000", "١", "1.0", "0x1", ""]
SPACE = "home"
DEVICE = "5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e"  # of the document's examples
PARTS = {"space": SPACE, "collection": "tasks", "id": "r", "device": DEVICE, "seq": "1"}
PARTS |= {"level": "0", "tile": "000", "token": new_id(), "code": "stale"}
REQUIRED = {"seq": "1", "size": "1", "from": "0", "older": "0", "to": "1"}


@pytest.fixture
def service(store):
    store.push(SPACE, push_of(changeset(put("r", x=1)), device=DEVICE))
    store.define(SPACE, "tasks", Proposal(JsonSchema.checked({"type": "object"}, LIMITS)))
    text, digest = a_token()
    store.grant(SPACE, new_id(), digest, Grant(role=Role.DEVICE, device=DEVICE), None)
    if hasattr(store, "project"):
        store.project()
    grow_trees(store)
    access = TokenAccess(store, store, admin_token=ADMIN_TOKEN)
    app = create_app(
        store=store,
        master=store,
        registry=store,
        tree=store,
        ready=dict,
        access=access,
        limits=LIMITS,
    )
    with served(store, LIMITS, app) as here, httpx.Client(base_url=here.url, timeout=30) as http:

        def send(method: str, path: str, body: Any = None, headers: Any = None) -> httpx.Response:
            token = text if path.endswith(("/changesets", "/sync")) else ADMIN_TOKEN
            headers = {"Authorization": f"Bearer {token}", **(headers or {})}
            content = None if body is None else json.dumps(body)
            if body is not None:
                headers["Content-Type"] = "application/json"
            return http.request(method, path, content=content, headers=headers)

        yield send


def operations(send) -> Iterator[tuple[str, str, dict[str, Any], list[dict[str, Any]]]]:
    for path, item in send("GET", "/openapi.json").json()["paths"].items():
        for method, operation in item.items():
            if method in ("get", "put", "post", "delete"):
                shared = item.get("parameters", [])
                yield method, path, operation, [*shared, *operation.get("parameters", [])]


def url_of(path: str, parameters: list[dict[str, Any]], name: str = "", text: str = "") -> str:
    """Returns the path and query with the parameter `name` set to `text`."""
    for part, value in PARTS.items():
        path = path.replace(f"{{{part}}}", quote(text) if part == name else value)
    names = {p["name"] for p in parameters if p["in"] == "query" and p.get("required")}
    query = {n: REQUIRED.get(n, "1") for n in names}
    if any(p["name"] == name and p["in"] == "query" for p in parameters):
        query[name] = text
    return path + ("?" + "&".join(f"{n}={quote(v)}" for n, v in query.items()) if query else "")


def is_sound(answer: httpx.Response) -> bool:
    """Whether the answer is no fault of the service."""
    if answer.status_code == 503:  # the master table is behind `at_least`
        return answer.json()["code"] == "projection-behind"
    return answer.status_code < 500


def test_every_integer_parameter_at_its_edges(service):
    tried = 0
    for method, path, _, parameters in operations(service):
        for parameter in parameters:
            schema, name = parameter["schema"], parameter["name"]
            is_whole = schema.get("type") == "integer"
            if not is_whole and "anyOf" not in schema and parameter["in"] != "header":
                continue
            for edge in [*EDGES, *TEXTS]:
                text = str(edge)
                if parameter["in"] == "header":
                    ascii_text = text if text.isascii() else "x"
                    headers, url = {name: ascii_text}, url_of(path, parameters)
                else:
                    headers, url = None, url_of(path, parameters, name, text)
                answer = service(method.upper(), url, headers=headers)
                assert is_sound(answer), (method, url, answer.text)
                tried += 1
                if not is_whole or parameter["in"] == "header":
                    continue
                is_allowed = type(edge) is int and schema["minimum"] <= edge <= schema["maximum"]
                is_refused = answer.status_code in (400, 404)
                is_bound = name in answer.text and answer.status_code == 400
                assert is_refused if not is_allowed else not is_bound, (url, answer.text)
    assert tried > 400


def edited(value: Any, edge: Any) -> Iterator[Any]:
    """Yields the value with each of its integers, one at a time, replaced."""
    if type(value) is int:
        yield edge
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from ({**value, name: below} for below in edited(item, edge))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ([*value[:index], new, *value[index + 1 :]] for new in edited(item, edge))


def test_every_integer_of_a_body_at_its_edges(service):
    tried = 0
    for method, path, operation, parameters in operations(service):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        # The example lacks these members, which are optional.
        more = {"if_version": 0} if "{collection}" in path else {}
        for edge in [*EDGES, 0.5, 1e300, True, *TEXTS]:
            for body in edited({**content.get("example", {}), **more}, edge):
                answer = service(method.upper(), url_of(path, parameters), body)
                assert is_sound(answer), (method, path, body, answer.text)
                tried += 1
    assert tried > 100
