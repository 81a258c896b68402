"""GET /v1/spaces/{space}/records, /conflicts, /devices/{device}/ids"""

from __future__ import annotations

import pytest

from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.names import id_of_local
from tests.helpers import A, B, changeset, delete, put

from .conftest import assert_problem


def test_the_live_records_by_collection_and_id(client):
    """
    The page has its exact form, without the deleted record.
    """
    receipt = client.filled(put("x", title="Milk"), put("y"), delete("y"))

    body = client.get("records").json

    received_at = receipt["verdicts"][0]["received_at"]
    assert body == {
        "log": receipt["log"],
        "head": 1,
        "projected": 1,
        "records": [
            {
                "collection": "tasks",
                "id": "x",
                "fields": {"title": "Milk"},
                "is_deleted": False,
                "last_modified": received_at,
                "seq": 1,
                "created_seq": 1,
            }
        ],
        "cursor": None,
    }


def test_pages_follow_the_cursor(client):
    """
    A cursor only says where the next page starts.
    """
    client.filled(*[put(str(n)) for n in range(5)])
    seen, cursor = [], ""

    for _ in range(10):
        page = client.get(f"records?limit=2{cursor}").json
        seen += [record["id"] for record in page["records"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"

    assert seen == ["0", "1", "2", "3", "4"]


def test_changed_records_include_tombstones(client):
    """
    Each record comes once, in its present state, including deleted records.
    """
    client.filled(put("x"), put("y"), put("z"))
    client.filled(delete("x"), put("y", n=1))

    body = client.get("records?changed_after=1&at_least=2").json

    assert [(r["id"], r["is_deleted"]) for r in body["records"]] == [("x", True), ("y", False)]


def test_records_of_one_collection(client):
    """
    A list shows the records of one collection.
    """
    client.filled(put("x", "tasks"), put("y", "notes"))

    body = client.get("records?collection=notes").json

    assert [record["id"] for record in body["records"]] == ["y"]


def test_one_record(client):
    """
    The response has its exact form. A deleted record is a tombstone; an unknown record is a 404.
    """
    receipt = client.filled(put("x", n=1), put("y"), delete("y"))

    body = client.get("records/tasks/x").json

    assert body.keys() == {"log", "head", "projected", "record"}
    assert (body["log"], body["head"], body["projected"]) == (receipt["log"], 1, 1)
    assert body["record"]["fields"] == {"n": 1}
    assert client.get("records/tasks/y").json["record"]["is_deleted"] is True
    assert_problem(client.get("records/tasks/never"), 404, "unknown-record")


def test_a_read_of_a_seq_beyond_the_log_is_refused(client):
    """
    A seq beyond the log is an error at once, because waiting is useless: the server was restored,
    or the seq belongs to another space.
    """
    client.filled(put())

    for path in ("records?at_least=9", "records/tasks/r?at_least=9"):
        answer = client.get(path)
        assert (answer.status_code, answer.json["code"]) == (409, "log-behind")


@pytest.mark.parametrize("path", ["records", "records/tasks/x", "conflicts", f"devices/{A}/ids"])
def test_an_unknown_space_is_not_found(client, path):
    """
    A read creates no space.
    """
    assert_problem(client.get(path), 404, "unknown-space")


def test_conflicts_have_the_lost_and_the_won_value(client):
    """
    The ledger has every lost value, and the value that won.
    """
    early = changeset(put("x", title="Milk"), made_at="2026-11-23T08:59:00Z")
    early_receipt = client.push(early).json
    receipt = client.filled(put("x", title="Bread"), device=B)

    body = client.get("conflicts").json

    assert body == {
        "log": receipt["log"],
        "head": 2,
        "projected": 2,
        "conflicts": [
            {
                "seq": 2,
                "op": "put",
                "collection": "tasks",
                "id": "x",
                "field": "title",
                "rule": "concurrent",
                "lost": {
                    "value": "Milk",
                    "seq": 1,
                    "device": A,
                    "changeset": early["id"],
                    "made_at": "2026-11-23T08:59:00.000Z",
                    "received_at": early_receipt["verdicts"][0]["received_at"],
                },
                "won": {
                    "value": "Bread",
                    "seq": 2,
                    "device": B,
                    "changeset": receipt["verdicts"][0]["id"],
                    "made_at": "2026-11-23T09:00:00.000Z",
                    "received_at": receipt["verdicts"][0]["received_at"],
                },
                "restore": {"base": 2, "ops": [put("x", title="Milk")]},
            }
        ],
        "cursor": None,
    }


def test_conflicts_page(client):
    """
    The ledger grows with the history, so it comes in pages.
    """
    client.push(changeset(put("x", a=1, b=1, c=1), made_at="2026-11-23T08:59:00Z"))
    client.filled(put("x", a=2, b=2, c=2), device=B)

    first = client.get("conflicts?limit=2").json
    rest = client.get(f"conflicts?limit=2&cursor={first['cursor']}").json

    assert [c["field"] for c in first["conflicts"] + rest["conflicts"]] == ["a", "b", "c"]
    assert rest["cursor"] is None


def test_the_ids_of_a_device(client):
    """
    A device can read the ids of its own keys at any time.
    """
    op = {"op": "put", "collection": "tasks", "local_id": "17", "fields": {}}
    client.filled(op)

    assert client.get(f"devices/{A}/ids").json == {
        "ids": {"tasks": {"17": id_of_local(A, "tasks", "17")}},
        "cursor": None,
    }
    assert client.get(f"devices/{B}/ids").json == {"ids": {}, "cursor": None}


def test_the_ids_of_a_device_page(client):
    """
    A device may have many keys, so they come in pages.
    """
    client.filled(*({"op": "put", "collection": "tasks", "local_id": key} for key in "abc"))

    first = client.get(f"devices/{A}/ids?limit=2").json
    rest = client.get(f"devices/{A}/ids?limit=2&cursor={first['cursor']}").json

    assert [list(page["ids"]["tasks"]) for page in (first, rest)] == [["a", "b"], ["c"]]
    assert rest["cursor"] is None
    assert client.get(f"devices/{A}/ids?limit=1001").json["code"] == "invalid-request"


@pytest.mark.parametrize("path", ["records", "conflicts", "devices", f"devices/{A}/ids"])
@pytest.mark.parametrize("cursor", ["x", "!!", "W10", "%F0%9F%90%98", "WzFd" * 1_000])
def test_a_strange_cursor_is_refused(client, path, cursor):
    """
    A cursor from any other source than an earlier page is an error of the client.
    """
    client.filled(put())

    assert_problem(client.get(f"{path}?cursor={cursor}"), 400, "invalid-request")


def test_a_database_that_is_away_is_unavailable(app_with, store):
    """
    The response is a 503 with `Retry-After`. Only our log has the message of the database.
    """

    class Away:
        def page(self, *_):
            raise StorageUnavailable

    answer = app_with(master=Away()).get("records")

    assert_problem(answer, 503, "storage-unavailable")
    assert answer.headers["Retry-After"] == "1"
