"""Hostile requests to every operation: each gets a problem document, or is answered as valid.

The tests list the operations of the app itself, so they cover operations that are added later.
`make test` sends a quarter of the texts and values to each place, and CI sends all of them.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from backports import zstd
from msgspec.json import decode as exact
from werkzeug.routing import Rule

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.operation import Operation
from foldlog.domain.limits import Limits
from tests.helpers import A, changeset, new_id, pull_all, put

from .conftest import ADMIN_TOKEN, SENT_AT, SpaceClient

AS_ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
DEEP = 100_000
MIB = 2**20
#: short waits, because some of the requests ask for a wait
LIMITS = Limits(
    inflated_bytes_max=MIB, wait_seconds_max=1, stream_seconds_max=1, at_least_wait_seconds_max=1
)
#: the quick variants send one of so many texts
PICKED = 4
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]

#: bytes that replace one value of a body
FRAGMENTS = {
    "invalid UTF-8": b'"\xff\xfe"',
    "cut UTF-8": b'"\xe2\x82"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "a surrogate, escaped": rb'"\ud83d"',
    "a surrogate, the other half": rb'"\udc00x"',
    "a surrogate as bytes": b'"\xed\xa0\xbd"',
    "NUL, escaped": rb'"a\u0000b"',
    "NUL, raw": b'"a\x00b"',
    "a control character": b'"a\x01b"',
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "minus Infinity": b"-Infinity",
    "a huge exponent": b"1e999",
    "a tiny exponent": b"1e-999",
    "2^53": b"9007199254740992",
    "2^64": b"18446744073709551616",
    "minus 2^63 - 1": b"-9223372036854775809",
    "400 digits": b"9" * 400,
    "5000 digits": b"9" * 5_000,
    "5000 digits of a fraction": b"0." + b"9" * 5_000,
    "minus nothing": b"-",
    "minus zero": b"-0.0",
    "a leading zero": b"01",
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and open": b"[" * DEEP,
    "some depth": b"[" * 1_500 + b"]" * 1_500,
    "too much nesting": b"[" * 40 + b"]" * 40,
    "a key twice": b'{"a":1,"a":2}',
    "a type": b'{"_type_":"datetime_iso","_data_":"2026-11-23"}',
    "a prototype": b'{"__proto__":{"isAdmin":true},"constructor":{"prototype":{}}}',
    "SQL": b'"\'; DROP TABLE events; --"',
    "format": b'"%s %(space)s {0} {x.__class__} ${jndi:ldap://x}"',
    "a folder": b'"../../etc/passwd"',
    "dots": b'".."',
    "nothing": b"",
    "null": b"null",
    "true": b"true",
    "an array": b"[]",
    "an object": b"{}",
    "empty text": b'""',
    "a fraction": b"1.5",
    "a negative number": b"-1",
    "long text": b'"' + b"x" * 70_000 + b'"',
    "a bad escape": rb'"\x"',
    "a word": b"undefined",
    "a comment": b"/* */ 1",
    "an early end": b"1}]}",
    "a year too far": b'"99999-01-01T00:00:00Z"',
    "a year too early": b'"0001-01-01T00:00:00+23:59"',
}

#: percent-encoded texts that replace a part of a path, or a parameter
TEXTS = [
    "%ff",
    "%ed%a0%80",
    "%c0%af",
    "%00",
    "a%00b",
    "a%2Fb",
    "..",
    "%2e%2e%2f%2e%2e",
    ".",
    "%",
    "%zz",
    "%25",
    "%F0%9F%92%A9",
    "%0d%0aX-Evil:1",
    quote("'; DROP TABLE events; --"),
    "__proto__",
    "{space}",
    "-1",
    "1.0",
    "1e3",
    "1e999",
    "NaN",
    "0x10",
    "%D9%A1",
    "9007199254740992",
    "9" * 30,
    "9" * 5_000,
    "a" * 3_000,
    "true",
    "[]",
    "%20",
    ",",
    ",,,",
    "W10",  # the cursor []
    "WzEsMl0",  # the cursor [1,2]
    "eyJhIjoxfQ",  # {"a":1}
    "2026-11-23T09:00:00Z",
    "99999-01-01T00:00:00Z",
    "x000/x000/000",
    "000.p/0",
    "000.p/999",
]

HEADERS = {
    "Last-Event-ID": ["-1", "1.5", "9" * 40, "\xff", "1, 2", "'; DROP"],
    "X-Request-Id": ["\xff", "x" * 5_000, "a b", "${x}"],
    "Authorization": ["Bearer", "Bearer \xff", "Basic \xff", "bearer  ", "Bearer " + "x" * 9_000],
    "Accept": ["\xff", ";;;", "*/*;q=abc", ",".join(["a/b"] * 500)],
    "Accept-Encoding": ["\xff", "gzip;q=abc", "br;q=0, zstd;q=-1", ",".join(["gzip"] * 500)],
    "Content-Type": ["\xff", "application/json; charset=\xff", "application/json;" * 50, "a" * 500],
    "Content-Encoding": ["\xff", "gzip, zstd", "br", "identity, gzip"],
    "X-Forwarded-For": ["\xff", "1.2.3.4, ::1, x", ",,,"],
    "Range": ["bytes=0-0", "x"],
    "Cookie": ["\xff=\xff", "a=" * 500],
    "If-None-Match": ["*", "\xff"],
}

#: A refusal before any store is asked is the same for each store: one is enough.
on_one_store = pytest.mark.parametrize("store", ["memory"], indirect=True)


@pytest.fixture
def hostile(store, client_of):
    """An app with all optional parts and two records; and a client of the app."""
    app = create_app(
        store=store,
        master=store,
        ready=lambda: {"database": "ok"},
        access=OpenAccess(ADMIN_TOKEN),
        registry=store,
        tree=store,
        add_checkpoint=lambda body: "- x y",
        limits=LIMITS,
    )
    client = SpaceClient(client_of(app))
    client.filled(put("r", "tasks", title="Milk"), put("s", "tasks", title="Bread"))
    return app, client


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.slow)])
def pick(request):
    """Returns a function that picks items of a list: all, or a quarter that varies by call."""
    if request.param == "all":
        return list
    starts = itertools.count()
    return lambda items: list(items)[next(starts) % PICKED :: PICKED]


def operations_of(app, space: str) -> list[tuple[Rule, Operation, str, dict[str, str]]]:
    """Lists the app's operations: rule, operation, template of the path, and valid parts of it."""
    good = {
        "space": space,
        "collection": "tasks",
        "id": "r",
        "device": A,
        "level": "0",
        "tile": "000.p/1",
        "seq": "1",
        "code": "id-reused",
        "token": "00000000-0000-4000-8000-000000000000",
    }
    found = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        assert isinstance(view, Operation)
        template = "".join(
            f"{{{part}}}" if is_variable else part for is_variable, part in rule._trace
        ).partition("|")[2]
        parts = {name: good[name] for name in rule.arguments}
        found.append((rule, view, template, parts))
    assert len(found) > 20
    return found


def method_of(rule) -> str:
    (method,) = rule.methods - {"HEAD", "OPTIONS"}
    return method


def send(client, path: str, method: str, **kwargs) -> Any:
    """Sends a request, and checks the rules that every response keeps."""
    headers = {**AS_ADMIN, **kwargs.pop("headers", {})}
    answer = client.http.open(path, method=method, headers=headers, **kwargs)
    sent = f"{method} {path[:200]} -> {answer.status}"
    assert answer.status_code < 500, sent
    if answer.mimetype == "text/event-stream":
        answer.close()
        return answer
    body = answer.get_data()
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.content_type == "application/problem+json", sent
        problem = json.loads(body)
        assert problem["status"] == answer.status_code, sent
        assert problem["code"] and problem["title"] and problem["detail"], sent
        assert len(body) < 4_000, f"{sent}: the response quotes the request at length"
    elif answer.mimetype == "application/json" and body:
        json.loads(body)
    return answer


def test_every_part_of_every_path(hostile, pick):
    """Odd texts in the place of each part of each path leave the log unchanged."""
    app, client = hostile
    for rule, _, template, good in operations_of(app, client.space):
        for name in good:
            for text in pick(TEXTS):
                send(client, template.format(**good | {name: text}), method_of(rule))
    assert client.get("events").json["head"] == 1


def test_every_query_parameter(hostile, pick):
    """Odd, unknown and repeated parameters leave the log unchanged."""
    app, client = hostile
    for rule, view, template, good in operations_of(app, client.space):
        path, method = template.format(**good), method_of(rule)
        names = [field.data_key or name for name, field in view.query.fields.items()]
        for name in [*names, "strange"]:
            for text in pick(TEXTS):
                send(client, f"{path}?{name}={text}", method)
            send(client, f"{path}?{name}=1&{name}=2", method)
        for query in ("&&&", "=", "%", "a" * 9_000, "&".join(f"a{n}=1" for n in range(200)), "?;"):
            send(client, f"{path}?{query}", method)
    assert client.get("events").json["head"] == 1


def test_every_method(hostile):
    """A 405 names the allowed method."""
    app, client = hostile
    for rule, _, template, good in operations_of(app, client.space):
        for method in METHODS:
            if method == method_of(rule) and method != "GET":
                continue
            answer = send(client, template.format(**good), method)
            if answer.status_code == 405:
                assert method_of(rule) in answer.headers["Allow"]
    assert client.get("events").json["head"] == 1


def test_every_header(hostile, pick):
    """Odd headers leave the log unchanged."""
    app, client = hostile
    for rule, view, template, good in operations_of(app, client.space):
        body = json.dumps(view.body_example).encode() if view.body else b""
        if view.body and method_of(rule) != "GET":
            body = b"{}"  # a valid body would store an event
        for name, values in HEADERS.items():
            for value in pick(values):
                headers = {"Content-Type": "application/json", name: value}
                send(client, template.format(**good), method_of(rule), headers=headers, data=body)
    assert client.get("events").json["head"] == 1


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of each value of a JSON document; of an array, only the first two items."""
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value[:2]):
            yield from places(item, (*path, index))


HERE = "d41d8cd98f00b204"


def with_fragment(example: Any, path: tuple, fragment: bytes) -> bytes:
    """Encodes the example as JSON, with these bytes in the place of one value."""
    copy = json.loads(json.dumps(example))
    if not path:
        return fragment
    at = copy
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = HERE
    return json.dumps(copy).encode().replace(f'"{HERE}"'.encode(), fragment)


def with_members(example: Any, path: tuple, members: bytes) -> bytes:
    """Encodes the example as JSON, with more members at the start of one object."""
    at = example
    for part in path:
        at = at[part]
    whole = json.dumps(at).encode()
    return with_fragment(example, path, b"{" + members + b"," + whole[1:])


def with_new_ids(body: Any) -> Any:
    """Gives the example's changesets new ids, base 0 and no counters."""
    if not isinstance(body, dict) or "changesets" not in body:
        return body
    made = [{**each, "id": new_id()} for each in body["changesets"]]
    for each in made:
        each.pop("counter", None)
        each["base"] = 0
    return {**body, "changesets": made, **({"after": 0, "mark": ""} if "after" in body else {})}


def test_every_value_of_every_body(hostile, store, pick):
    """Odd and broken JSON in the place of each value: a refusal leaves the log unchanged."""
    app, client = hostile
    head = client.get("events").json["head"]
    for rule, view, template, good in operations_of(app, client.space):
        if view.body is None:
            continue
        path = template.format(**good)
        fragments = (
            (place, *fragment)
            for place in places(view.body_example)
            for fragment in pick(FRAGMENTS.items())
        )
        for place, name, fragment in fragments:
            body = with_fragment(with_new_ids(view.body_example), place, fragment)
            answer = send(client, path, method_of(rule), data=body, content_type="application/json")
            now = client.get("events?limit=1").json["head"]
            if answer.status_code >= 400:
                assert now == head, f"{place} {name}: {answer.text} stored something"
            in_changeset = place[:1] == ("changesets",) and len(place) > 1
            if in_changeset and answer.status_code in (400, 422) and name not in TORN:
                problem = answer.json
                assert problem.get("index") == place[1], f"{place} {name}: {problem}"
            head = now
    assert_whole(client, store, head)


#: Fragments that break the JSON around them, so that changesets cannot be told apart.
TORN = {
    "nothing",
    "minus nothing",
    "a leading zero",
    "deep and open",
    "a word",
    "a comment",
    "an early end",
    "a bad escape",
    "NUL, raw",
    "a control character",
}

MEMBERS = [
    b'"__proto__":{"a":1}',
    b'"constructor":1',
    b'"_type_":"x","_data_":1',
    b'"\'; DROP TABLE events; --":1',
    b'"\\u0000":1',
    b'"\\ud800":1',
    b'"\xff":1',
    b'"":1',
    b'"' + b"x" * 5_000 + b'":1',
    b'"__class__":1,"__dict__":2',
    b",".join(b'"m%d":1' % n for n in range(2_000)),
]


def test_every_object_of_every_body_has_strange_members(hostile, store, pick):
    """Unknown and repeated members: the log stays whole."""
    app, client = hostile
    for rule, view, template, good in operations_of(app, client.space):
        if view.body is None:
            continue
        example = view.body_example
        for place in places(example):
            at = example
            for part in place:
                at = at[part]
            if not isinstance(at, dict):
                continue
            path = template.format(**good)
            for members in pick(MEMBERS):
                body = with_members(with_new_ids(example), place, members)
                send(client, path, method_of(rule), data=body, content_type="application/json")
        again = {**with_new_ids(example)}
        for name in again:
            twice = b"{%b:1," % json.dumps(name).encode() + json.dumps(again).encode()[1:]
            answer = send(
                client,
                template.format(**good),
                method_of(rule),
                data=twice,
                content_type="application/json",
            )
            assert answer.status_code == 400, f"{name} twice"
    assert_whole(client, store, client.get("events?limit=1").json["head"])


@cache
def bombs() -> list[tuple[str, bytes]]:
    """Small bodies that inflate to 64 MiB."""
    bomb = bytes(64 * MIB)
    gzipped = gzip.compress(bomb, 9)
    return [("x-gzip", gzipped), ("gzip", gzipped), ("zstd", zstd.compress(bomb))]


def encoded(body: bytes) -> list[tuple[str, bytes]]:
    """Wrong encodings of a body, each with its Content-Encoding."""
    return [
        *bombs(),
        ("gzip", gzip.compress(body)[:-5]),
        ("gzip", gzip.compress(body)[: len(body) // 4]),
        ("gzip", gzip.compress(body) + b"more"),
        ("gzip", gzip.compress(body) * 2),
        ("gzip", b"\x1f\x8b" + b"\xff" * 100),
        ("gzip", b""),
        ("gzip", body),
        ("gzip", gzip.compress(gzip.compress(body))),
        ("zstd", zstd.compress(body)[:-3]),
        ("zstd", zstd.compress(body) + b"more"),
        ("zstd", body),
        ("zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 50),
        ("deflate", body),
        ("identity", gzip.compress(body)),
    ]


@on_one_store
def test_every_encoding_of_every_body(hostile):
    """A cut, doubled or garbled body, and a bomb, are refused."""
    app, client = hostile
    for rule, view, template, good in operations_of(app, client.space):
        if view.body is None:
            continue
        body = json.dumps(with_new_ids(view.body_example)).encode()
        for encoding, sent in encoded(body):
            headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
            path = template.format(**good)
            answer = send(client, path, method_of(rule), data=sent, headers=headers)
            assert answer.status_code in (400, 413, 415), f"{encoding}: {answer.text}"
    assert client.get("events").json["head"] == 1


def assert_whole(client, store, head: int) -> None:
    """Checks that the log has all seqs, and that all events are projected and readable."""
    states = pull_all(store, client.space)
    assert [exact(state)["seq"] for state in states] == list(range(1, head + 1))
    client.caught_up(head)
    for path in ("records", "conflicts", "diff", "snapshot"):
        assert client.get(path).status_code == 200


#: odd but valid values
VALUES = [
    b'"a\\u0000b"',
    b'"\\ud83d\\ude00"',
    b'{"_type_":"datetime_iso","_data_":"2026-11-23"}',
    b'{"__proto__":{"isAdmin":true},"constructor":null,"toString":1}',
    b'{"\'; DROP TABLE events; --":"%s %(space)s {0}"}',
    b'{"":{"":[]}}',
    b'{"\\u0000":1,"a.b/c~d":2,"$ref":"#"}',
    b"1e308",
    b"-1e-308",
    b"5e-324",
    b"0.1",
    b"-0.0",
    b"9007199254740991",
    b"[[[[[[[[[[]]]]]]]]]]",
    b'"\\u2028\\u2029\\ufeff\\uffff"',
    b"null",
]


def test_what_is_accepted_comes_back_as_it_was(hostile):
    """Log, master table, history and snapshot return the same values and names of fields."""
    _, client = hostile
    names = ["title", "__proto__", "_type_", "'; DROP TABLE events; --", "a/b~c.d", " ", "%s"]
    fields = [b"%b:%b" % (json.dumps(n).encode(), v) for n, v in itertools.product(names, [b"1"])]
    fields += [b'"v%d":%b' % (number, value) for number, value in enumerate(VALUES)]
    raw = b"{%b}" % b",".join(fields)
    made = json.dumps(changeset(put("../a/b%2Fc?d#e\\", "odd", here=HERE))).encode()
    made = made.replace(b'{"here": "%b"}' % HERE.encode(), raw)
    body = b'{"device":"%b","sent_at":"%b","changesets":[%b]}' % (
        A.encode(),
        SENT_AT.encode(),
        made,
    )

    answer = client.post("changesets", body)

    assert answer.status_code == 200, answer.text
    head = answer.json["head"]
    client.caught_up(head)
    expected = exact(raw)
    [event] = exact(client.get(f"events?after={head - 1}").data)["events"]
    assert event["ops"][0]["fields"] == expected
    path = quote("../a/b%2Fc?d#e\\", safe="")
    [record] = exact(client.get(f"records?collection=odd&id={path}").data)["records"]
    assert record["fields"] == expected
    [version] = exact(client.get(f"history/odd/{path}").data)["versions"]
    assert {name: change["to"] for name, change in version["changed"].items()} == expected
    lines = client.get("snapshot").data.splitlines()
    assert expected in [exact(line).get("fields") for line in lines]


@on_one_store
@pytest.mark.parametrize("depth", [33, 500, 1_000, 1_500, 20_000, 40_000])
@pytest.mark.parametrize("shape", [(b"[", b"]"), (b'{"a":', b"}")])
def test_the_changeset_that_is_nested_too_deeply_is_named(hostile, depth, shape):
    """The problem names the changeset, so that the device can set it aside and send the others."""
    _, client = hostile
    deep = shape[0] * depth + b"1" + shape[1] * depth
    good, bad = (json.dumps(changeset(put("r", x=HERE))).encode() for _ in range(2))
    bad = bad.replace(f'"{HERE}"'.encode(), deep)
    body = b'{"device":"%b","sent_at":"%b","changesets":[%b,%b]}' % (
        A.encode(),
        SENT_AT.encode(),
        good,
        bad,
    )

    answer = client.post("changesets", body)

    problem = answer.get_json()
    assert (answer.status_code, problem["code"]) == (422, "limit-exceeded"), problem
    assert (problem["index"], problem["limit"], problem["value"]) == (1, "nesting_max", 32)
    assert client.get("events").json["head"] == 1
