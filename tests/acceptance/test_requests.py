"""What cannot be read is named: unknown, repeated and wrong members and parameters."""

from __future__ import annotations

import json

import pytest

from foldlog.domain.times import TIME_FORM
from tests.helpers import A, changeset, put

from .conftest import SENT_AT, assert_problem

BODY = {"device": A, "sent_at": SENT_AT, "changesets": []}


@pytest.mark.parametrize(
    ("query", "parameter", "detail"),
    [
        ("aftr=3", "aftr", "there is no such parameter"),
        ("after=1&after=2", "after", "given more than once"),
        ("after=", "after", "must be a whole number"),
        ("after=-1", "after", "must be a whole number"),
        ("after=1_0", "after", "must be a whole number"),
        ("after=%201", "after", "must be a whole number"),
        ("after=%D9%A1", "after", "must be a whole number"),
        ("after=1.0", "after", "must be a whole number"),
        ("after=" + "9" * 5_000, "after", "must be a whole number"),
        (
            "after=9007199254740992",
            "after",
            "Must be greater than or equal to 0 and less than or equal to 9007199254740991.",
        ),
        (
            "limit=0",
            "limit",
            "Must be greater than or equal to 1 and less than or equal to 1000.",
        ),
        (
            "limit=1001",
            "limit",
            "Must be greater than or equal to 1 and less than or equal to 1000.",
        ),
        ("mark=xyz", "mark", "a mark is 16 hex digits in lower case, or empty"),
        ("device=A", "device", "a device's id must be a UUID in lower case"),
        ("own=ful", "own", "Must be one of: full."),
        (
            "collections=",
            "collections",
            "a collection's name must be 1-64 of A-Z a-z 0-9 - _ .",
        ),
        (
            "collections=a,,b",
            "collections",
            "a collection's name must be 1-64 of A-Z a-z 0-9 - _ .",
        ),
        ("collections=" + ",".join("a" * 101), "collections", "Length must be between 1 and 100."),
    ],
)
def test_a_wrong_parameter_is_named(client, query, parameter, detail):
    """
    Never ignored: a mistyped filter would answer something else than was asked for.
    """
    client.push(changeset())
    errors = [{"parameter": parameter, "detail": detail}]

    assert_problem(client.get(f"events?{query}"), 400, "invalid-request", errors=errors)


def test_all_that_is_wrong_is_named_at_once(client):
    """
    One round of mending, not one for each mistake.
    """
    answer = client.get("events?aftr=3&limit=x&limit=2")

    assert {error["parameter"] for error in answer.json["errors"]} == {"aftr", "limit"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/limits", "/openapi.json", "/docs"])
def test_no_operation_ignores_a_parameter(http, path):
    """
    One rule for all of them.
    """
    assert_problem(
        http.get(f"{path}?x=1"),
        400,
        "invalid-request",
        errors=[{"parameter": "x", "detail": "there is no such parameter"}],
    )


def test_a_push_has_no_parameters(client):
    """
    `limit` belongs into the body of a sync.
    """
    answer = client.post("sync?limit=1", {**BODY, "after": 0})

    assert answer.json["errors"] == [{"parameter": "limit", "detail": "there is no such parameter"}]


def test_a_query_of_very_many_parameters_is_refused(client):
    """
    Everything has a limit.
    """
    query = "&".join(f"p{n}" for n in range(60))

    assert_problem(client.get(f"events?{query}"), 400, "invalid-request")


@pytest.mark.parametrize("space", ["Upper", "a b", "é", "x" * 65, "%2E", ".."])
@pytest.mark.parametrize("path", ["events", "records", "records/tasks/x", "conflicts"])
def test_what_cannot_be_a_space_is_refused(http, space, path):
    """
    Not 404: no push could ever make it.
    """
    errors = [{"parameter": "space", "detail": "a space is named by 1-64 of a-z 0-9 - _ ."}]

    assert_problem(http.get(f"/v1/spaces/{space}/{path}"), 400, "invalid-request", errors=errors)


def test_what_cannot_be_a_collection_or_a_device_is_refused(client):
    """
    The parts of a path are named like parameters.
    """
    collection = client.get("records/a%20b/x").json["errors"]
    device = client.get("devices/ME/ids").json["errors"]

    assert [error["parameter"] for error in collection] == ["collection"]
    assert [error["parameter"] for error in device] == ["device"]


@pytest.mark.parametrize(
    ("members", "pointer", "detail"),
    [
        ({"devise": A}, "/devise", "there is no such member"),
        ({"a/b~c": 1}, "/a~1b~0c", "there is no such member"),
        ({"device": A.upper()}, "/device", "a device's id must be a UUID in lower case"),
        ({"device": 5}, "/device", "Not a valid string."),
        ({"return": "record"}, "/return", "Must be one of: records."),
        *[
            (
                {"sent_at": sent_at},
                "/sent_at",
                f"must be {TIME_FORM}",
            )
            for sent_at in (
                "2026-11-23T09:00:00",
                "yesterday",
                "2016-12-31T23:59:60Z",
                1_795_424_402,
                "0001-01-01T00:00:00+14:00",
                ["2026-11-23T09:00:00Z"],
            )
        ],
    ],
)
def test_a_wrong_member_is_named(client, members, pointer, detail):
    """
    With a JSON pointer, and nothing of it is stored.
    """
    answer = client.post("changesets", {**BODY, **members})

    errors = [{"pointer": pointer, "detail": detail}]
    assert_problem(answer, 400, "invalid-request", errors=errors)


def test_a_leap_second_is_refused_with_the_cure(client):
    """
    Some clocks show it. A time is stored in ms since 1970, which has no place for it.
    """
    late = changeset(put(), made_at="2016-12-31T23:59:60Z")
    answer = client.push(changeset(put()), late)
    assert (answer.status_code, answer.json["code"]) == (422, "invalid-changeset")
    assert (answer.json["index"], answer.json["detail"]) == (1, f"must be {TIME_FORM}")


def test_a_byte_order_mark_is_named(client):
    """
    Some tools write it at the beginning of UTF-8 files.
    """
    body = json.dumps({**BODY, "changesets": [changeset(put())]}).encode()
    answer = client.http.post(
        f"/v1/spaces/{client.space}/changesets",
        data=b"\xef\xbb\xbf" + body,
        headers={"Content-Type": "application/json"},
    )
    assert_problem(answer, 400, "invalid-request")
    assert "byte order mark" in answer.json["detail"]


@pytest.mark.parametrize("member", ["device", "sent_at", "changesets"])
def test_a_missing_member_is_named(client, member):
    """
    There is no default for who sends, when, and what.
    """
    answer = client.post("changesets", {k: v for k, v in BODY.items() if k != member})

    errors = [{"pointer": f"/{member}", "detail": "Missing data for required field."}]
    assert_problem(answer, 400, "invalid-request", errors=errors)


@pytest.mark.parametrize("after", [-1, 1.0, "1", True, 2**53, 10**30])
def test_a_seq_is_a_whole_number(client, after):
    """
    Neither 1.0 nor "1" nor true is one.
    """
    answer = client.sync(after=after)

    assert answer.status_code == 400
    assert [error["pointer"] for error in answer.json["errors"]] == ["/after"]


def test_a_wrong_item_is_named_by_its_place(client):
    """
    Lists are counted from 0.
    """
    answer = client.sync(collections=["ok", "not ok"])

    assert [error["pointer"] for error in answer.json["errors"]] == ["/collections/1"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}x",
        b"{'device': 1}",
        b'{"device": NaN}',
        b'\xef\xbb\xbf{"device":"x"}',
        b'{"device":"\xff"}',
        b'{"\xff":1}',
        b'{"device":"\\ud800"}',
        b'{"changesets":' + b"[" * 100_000,
        b'{"device":' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"}",
        b"[" * 100_000,
        json.dumps({**BODY, "changesets": [changeset()]}).encode()[:-20],
        json.dumps(BODY).encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_object_is_refused(client, body):
    """
    Whatever comes, it is the sender's fault and said so: 400, never 500.
    """
    assert_problem(client.post("changesets", body), 400, "invalid-request")


def test_an_array_that_is_whole_names_the_item_that_is_wrong(client):
    """
    However deep it goes: it is no changeset, and will not be one when it is sent again.
    """
    answer = client.post("changesets", b'{"changesets":' + b"[" * 100_000 + b"]" * 100_000 + b"}")

    assert (answer.status_code, answer.json["index"]) == (422, 0)


def test_a_body_that_was_cut_names_no_changeset(client):
    """
    It is whole where it was made: a device would set one aside that nothing is wrong with.
    """
    text = json.dumps({**BODY, "changesets": [changeset(), changeset(put(title="HERE"))]})
    body = text.encode().replace(b"HERE", b"\xff" + b"[" * 500)

    for end in range(text.index("changesets"), len(body) - 2, 7):
        assert_problem(client.post("changesets", body[:end]), 400, "invalid-request")


def test_of_many_errors_some_are_told(client):
    answer = client.post("changesets", {f"m{n}": 1 for n in range(30)})

    errors = answer.json["errors"]
    assert answer.status_code == 400
    assert [len(errors), errors[-1]] == [21, {"detail": "and 13 more"}]  # 3 are missing


def test_bad_utf8_inside_a_changeset_names_it(client):
    """
    The others can be sent.
    """
    text = json.dumps({**BODY, "changesets": [changeset(), changeset(put(title="HERE"))]})

    answer = client.post("changesets", text.encode().replace(b"HERE", b"\xff"))

    assert (answer.status_code, answer.json["index"]) == (422, 1)


@pytest.mark.parametrize("name", ["device", "changesets", "sent_at", "unknown"])
def test_a_member_given_twice_is_refused(client, name):
    """
    JSON readers differ in which one they take; with a proxy between, that is a hole.
    """
    pairs = [*BODY.items(), (name, BODY.get(name, 1)), ("unknown", 1)]
    body = "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in pairs) + "}"

    answer = client.post("changesets", body.encode())

    errors = [{"pointer": f"/{name}", "detail": "given more than once"}]
    assert_problem(answer, 400, "invalid-request", errors=errors)


def test_members_without_end_are_refused(client):
    """
    A MiB of names would become a hundred of objects, and the answer as long as the question.
    """
    many = {f"m{n}": 1 for n in range(51)}
    long = {**BODY, "n" * 1_000_000: 1}
    deep = {**BODY, "device": [[]] * 100_000}

    assert_problem(client.post("changesets", many), 400, "invalid-request")
    assert len(client.post("changesets", long).data) < 1_000
    errors = [{"pointer": "/device", "detail": "longer than 65536 bytes"}]
    assert_problem(client.post("changesets", deep), 400, "invalid-request", errors=errors)


def test_a_path_that_is_not_there(http):
    """
    Flask's own refusals have the same form as ours.
    """
    assert_problem(http.get("/v2/spaces"), 404, "no-such-path")


def test_a_method_that_is_not_there(client):
    """
    405 says what is allowed.
    """
    answer = client.get("changesets")

    assert_problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_a_fault_of_ours_says_nothing_of_what_happened(app_with):
    """
    Only under which id it is found in our logs.
    """

    class Broken:
        def range_after(self, *_):
            raise RuntimeError("password=hunter2")

    answer = app_with(store=Broken()).get("events", headers={"X-Request-Id": "abc-1"})

    assert_problem(answer, 500, "internal-error", request_id="abc-1")
    assert "hunter2" not in answer.text


def test_a_fault_of_the_infrastructure_is_no_client_s(app_with):
    """
    An error of ours that has no status here is a fault of ours, too.
    """
    from foldlog.domain.errors import OperatorError

    class Broken:
        def range_after(self, *_):
            raise OperatorError("the key file /etc/foldlog/key is missing")

    answer = app_with(store=Broken()).get("events")

    assert answer.status_code == 500
    assert "key" not in answer.text
