"""Apps choose the ids of their records, and ids must survive unchanged in a path."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.helpers import put

from .conftest import assert_problem

STRANGE = [
    "a/b",
    "/a",
    "a/",
    "//",
    "a//b",
    "a%2Fb",
    "%",
    "100 %",
    "a b",
    " ",
    "a+b",
    "a?b=c&d",
    "a#b",
    "a;b",
    "a:b@c",
    "..",
    ".",
    "../../etc/passwd",
    "a/../b",
    "./a",
    "a/.",
    "Grüße",
    "🐘",
    "é",
    "\n",
    "a\r\nb",
    "\t",
    "\x7f",
    "\u2028",
    '"',
    "\\",
    "<script>",
    "history",
    "x" * 128,
    "🐘" * 128,
]


@pytest.mark.parametrize("id", STRANGE, ids=ascii)
def test_an_id_is_found_by_its_path(client, id):
    """
    A percent-encoded id, including slashes, leads to exactly its record.
    """
    client.filled(put(id, mine=True), put("a"), put("b"), put("etc/passwd"))

    answer = client.get(f"records/tasks/{quote(id, safe='')}")

    assert answer.status_code == 200, answer.text
    assert (answer.json["record"]["id"], answer.json["record"]["fields"]) == (id, {"mine": True})


@pytest.mark.parametrize("id", [".", "..", "a/../b", "/", "🐘", "a+b&c"], ids=ascii)
def test_an_id_is_found_by_a_parameter(client, id):
    """
    Browsers treat `.` and `..` in a path as folders, but leave a query unchanged.
    """
    client.filled(put(id, mine=True), put("a"), put(id, "notes"))

    answer = client.get(f"records?collection=tasks&id={quote(id, safe='')}")

    assert answer.status_code == 200, answer.text
    (record,) = answer.json["records"]
    assert (record["collection"], record["id"]) == ("tasks", id)
    assert answer.json["cursor"] is None


@pytest.mark.parametrize("id", [".", "..", "a/../b", "/", "🐘", "a+b&c"], ids=ascii)
def test_the_history_of_an_id_by_a_parameter(client, id):
    """
    It equals the history by path, for ids that a path can carry.
    """
    client.filled(put(id, mine=True), put("a"), put(id, "notes"))

    answer = client.get(f"history?collection=tasks&id={quote(id, safe='')}")

    assert answer.status_code == 200, answer.text
    (version,) = answer.json["versions"]
    assert version["changed"] == {"mine": {"to": True}}
    wrong = client.get("history?id=a")
    assert wrong.json["errors"][0]["parameter"] == "collection"


def test_an_id_by_parameter_stands_alone(client):
    """
    It requires its collection, and excludes the parameters of pages.
    """
    client.filled(put())

    alone = client.get("records?id=r")
    paged = client.get("records?id=r&collection=tasks&changed_after=0")

    assert alone.json["errors"] == [
        {"parameter": "collection", "detail": "required together with `id`"}
    ]
    assert paged.json["errors"] == [
        {"parameter": "changed_after", "detail": "not allowed together with `id`"}
    ]
    assert_problem(client.get("records?collection=tasks&id=never"), 404, "unknown-record")


def test_slashes_need_not_be_encoded(client):
    """
    The id is the last part of the path, so the slash is unambiguous.
    """
    client.filled(put("a/b"))

    assert client.get("records/tasks/a/b").json["record"]["id"] == "a/b"


@pytest.mark.parametrize("id", ["%00", "x" * 129])
def test_an_invalid_id_is_refused(client, id):
    """
    PostgreSQL cannot store NUL. The limit of the length has a name.
    """
    client.filled(put())
    errors = [{"parameter": "id", "detail": "an id must be 1-128 characters without NUL"}]

    assert_problem(client.get(f"records/tasks/{id}"), 400, "invalid-request", errors=errors)


@pytest.mark.parametrize("bytes", ["%FF", "%C3", "%ED%A0%80"])
def test_a_path_that_is_not_utf8_is_refused(client, bytes):
    """
    A lenient decoder would put U+FFFD in its place and so lead to another record.
    """
    client.filled(put("\ufffd"))

    assert_problem(client.get(f"records/tasks/{bytes}"), 400, "invalid-request")
    assert_problem(client.get(f"records?collection=tasks&id={bytes}"), 400, "invalid-request")


@pytest.mark.parametrize(
    "path",
    ["records/tasks", "records/tasks/", "records/", "events/", "records//x", "//records"],
)
def test_a_path_is_not_mended(client, path):
    """
    An empty id is an error, and a doubled slash is part of the id. The service never redirects.
    """
    client.filled(put())

    assert client.get(path).status_code in (400, 404)
