"""Requests that schemathesis generates from the OpenAPI document, with all its checks.

The service accepts requests that the document allows, and refuses others. The document describes
all answers. The requests go to a server on a real socket.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.specs.openapi.checks import response_schema_conformance

from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.domain.access import Caller, Grant, Right, Role
from foldlog.domain.errors import Unauthenticated
from foldlog.domain.limits import Limits
from foldlog.domain.names import is_record_id, is_space
from foldlog.domain.notes import Signer
from foldlog.infrastructure.memory.store import MemoryStore
from tests.asgi_client import asgi_client
from tests.examples import examples
from tests.helpers import B, a_token, changeset, delete, grow_trees, new_id, push_of, put

from .conftest import ADMIN_TOKEN
from .live import served

SPACE = "home"
#: The memory store has no halted projections, and no signer. No request has a right code, or the
#: token of a device.
NEVER_ACCEPTED = {
    "POST /v1/admin/spaces/{space}/skip",
    "GET /v1/spaces/{space}/checkpoint",
    "POST /v1/spaces/{space}/enrol",
    "POST /v1/spaces/{space}/trade",
}
TOKEN_ID = new_id()
LIMITS = Limits(wait_seconds_max=1, stream_seconds_max=0, at_least_wait_seconds_max=1)


def filled_store() -> MemoryStore:
    store = MemoryStore(limits=LIMITS)
    store.push(SPACE, push_of(changeset(put("r", x=1), put("s", "notes", text="a"))))
    store.push(SPACE, push_of(changeset(put("r", x=2), delete("s", "notes")), device=B))
    _, digest = a_token()
    store.grant(SPACE, TOKEN_ID, digest, Grant(role=Role.READER), None)
    grow_trees(store)
    return store


class OneToken(TokenAccess):
    """An access with one token for all rights and devices, so that it reaches each operation."""

    def _find(self, space: str, token: str, digest: bytes) -> Caller:
        if token != ADMIN_TOKEN:
            raise Unauthenticated
        return Caller("all", frozenset(Right), is_any_device=True, is_of_every_space=True)


async def no_sleep(_: float) -> None: ...


store = filled_store()
app = create_app(
    store=store,
    master=store,
    ready=lambda: {"database": "ok"},
    limits=LIMITS,
    access=OneToken(store, store, sleep=no_sleep),
    registry=store,
    tree=store,
    verifiers=lambda space: [Signer("foldlog.test/log", b"k" * 32).verifier()],
    add_checkpoint=lambda body: "- x y",
)
schema = schemathesis.openapi.from_dict(asgi_client(app).get("/openapi.json").json)


#: parts of paths that exist in the store
EXISTING = {"collection": "tasks", "id": "r", "seq": 1, "level": 0, "tile": "000.p/1", "device": B}
EXISTING |= {"token": TOKEN_ID}


def fit(case):
    """Changes a request: half of the paths exist, and most bodies follow rules given in words."""
    path = case.path_parameters or {}
    space = path.get("space")
    if isinstance(space, str) and is_space(space) and ord(space[0]) % 8:
        path["space"] = SPACE
    is_chosen = sum(map(ord, str(path))) % 2  # a sum, because the lengths of ids are equal
    if case.meta is not None and case.meta.generation.mode.is_positive and is_chosen:
        path |= {name: EXISTING[name] for name in path.keys() & EXISTING.keys()}
    case.body = kept_to_rules(case.body)


def kept_to_rules(value):
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema counts 1.0 as an integer
    if isinstance(value, list):
        return [kept_to_rules(item) for item in value]
    if isinstance(value, dict):
        value = {name: kept_to_rules(item) for name, item in value.items()}
        if "op" in value and "collection" in value:
            return operation_kept_to_rules(value)
    return value


def operation_kept_to_rules(op):
    if is_record_id_text(op.get("id")) and is_record_id_text(op.get("local_id")):
        del op["local_id"]
    fields, unset = op.get("fields"), op.get("unset")
    if op["op"] in ("add", "delete") and isinstance(unset, list) and is_texts(unset):
        del op["unset"]
    if op["op"] == "delete" and isinstance(fields, dict):
        del op["fields"]
    if op["op"] == "add" and isinstance(op.setdefault("fields", {}), dict):
        op["fields"] = {"n": len(op["fields"])}
    if op["op"] == "put" and isinstance(fields, dict) and isinstance(unset, list):
        op["fields"] = {name: value for name, value in fields.items() if name not in unset}
    return op


def is_record_id_text(value):
    return isinstance(value, str) and is_record_id(value)


def is_texts(values):
    return all(isinstance(value, str) for value in values)


#: Rules that the document gives in words. A problem with such a detail may answer a request that
#: the schemas allow.
IN_WORDS = {
    "this cursor is not one that an earlier page gave",
    "required together with `id`",
    "must not be after `to`",
    "not allowed together with `id`",
    "not allowed together with `as_of`; /diff compares two moments",
    "select records by their keys, or by a collection and `where`",
    "an operation must name its record by either id or local_id",
    "only a token of the role `device` names a device, and it must name one",
    "`expires_at` is in the past",
    "a code expires within 30 days from now",
    # In Python the `$` of a pattern also matches before a last newline, unlike JSON Schema.
    *(f"`{name}` must be one line of printable characters" for name in ("reason", "by", "name")),
}
CODES_IN_WORDS = {"limit-exceeded", "invalid-schema"}


#: a time with an offset, outside of the years that Python supports
_EDGE_OF_TIME = re.compile("0001-01-01T|9999-12-31T")
#: All values of a query are text: `true` is a name, and an empty object disappears.
_NO_TEXT = re.compile(r"violates `type` at .* became (?:boolean|object|array|null)\)")


@schema.hook
def filter_failure(context, failure, case, response):
    if isinstance(failure, AcceptedNegativeData):
        violations = [line for line in failure.message.splitlines() if "violates" in line]
        if any("(was Authorization)" in line for line in violations):
            return False  # the request had the token of `HEADERS`
        in_query = "in query" in failure.message
        return not (in_query and violations and all(map(_NO_TEXT.search, violations)))
    if not isinstance(failure, RejectedPositiveData):
        return True
    if _EDGE_OF_TIME.search(str(case.query) + str(case.body)):
        return False
    problem = response.json()
    details = {problem["detail"], *(error["detail"] for error in problem.get("errors", ()))}
    return not (problem["code"] in CODES_IN_WORDS or details & IN_WORDS)


HEADERS = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept-Encoding": "identity"}
asked = Counter()


def ask(case, **kwargs):
    fit(case)
    answer = case.call(headers=HEADERS, **kwargs)
    is_its_own = case.method == case.operation.method.upper()
    asked[case.operation.label if is_its_own else "another method", answer.status_code] += 1
    # The document describes the data of a stream's messages, but the check reads whole messages.
    excluded = [response_schema_conformance] if case.path.endswith("/stream") else []
    case.validate_response(answer, headers=HEADERS, excluded_checks=excluded)


def requests(count: int):
    return examples(count, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def live():
    with served(store, LIMITS, app) as here:
        yield here


@schema.parametrize()
@requests(15)
def test_requests(case, live):
    ask(case, base_url=live.url)


@pytest.mark.soak
@schema.parametrize()
@requests(1_900)
def test_many_requests(case, live):
    ask(case, base_url=live.url)


@pytest.mark.soak
def test_the_generated_requests_reach_each_operation():
    """
    Each operation has accepted a request. Run this test with the others in one process.
    """
    print(*sorted(asked.items()), sep="\n")
    assert sum(asked.values()) >= 50_000
    taken = {label for label, status in asked if status == 200}
    assert {label for label, _ in asked} - taken <= NEVER_ACCEPTED
