"""GET /v1/spaces/{space}/records?as_of=, /history, /diff, and the filters of /conflicts"""

from __future__ import annotations

from urllib.parse import quote

import pytest

from foldlog.domain.errors import HistoryUnavailable
from tests.helpers import A, B, C, changeset, delete, new_id, put

from .conftest import assert_problem


@pytest.fixture
def lived(client):
    """Three events on one record: a put, a concurrent put, and a deletion."""
    sent = [
        changeset(put("x", title="Milk", n=1), made_at="2026-11-23T08:59:00Z"),
        changeset(put("x", title="Bread"), put("y")),
        changeset(delete("x"), base=2),
    ]
    verdicts = []
    for one, device in zip(sent, (A, B, A), strict=True):
        answer = client.push(one, device=device).json
        verdicts += answer["verdicts"]
    client.caught_up(3)
    client.log = answer["log"]
    client.verdicts = verdicts
    return client


def test_the_records_of_a_moment(lived):
    """
    The page has its exact form, and the seq of the moment.
    """
    assert lived.get("records?as_of=1").json == {
        "log": lived.log,
        "head": 3,
        "projected": 3,
        "records": [
            {
                "collection": "tasks",
                "id": "x",
                "fields": {"title": "Milk", "n": 1},
                "is_deleted": False,
                "last_modified": lived.verdicts[0]["received_at"],
                "seq": 1,
                "created_seq": 1,
            }
        ],
        "cursor": None,
        "as_of": 1,
    }
    assert lived.get("records?as_of=0").json["records"] == []
    assert [r["id"] for r in lived.get("records?as_of=3").json["records"]] == ["y"]


def test_one_record_of_a_moment(lived):
    """
    By path and by parameter: a tombstone after the deletion, and a 404 before the first event.
    """
    for path in ("records/tasks/x?", "records?collection=tasks&id=x&"):
        answers = [lived.get(f"{path}as_of={seq}").json for seq in (1, 2, 3)]
        found = [a["record"] if "record" in a else a["records"][0] for a in answers]
        assert [a["as_of"] for a in answers] == [1, 2, 3]
        assert [r["fields"] for r in found] == [
            {"title": "Milk", "n": 1},
            {"title": "Bread", "n": 1},
            {},
        ]
        assert [r["is_deleted"] for r in found] == [False, False, True]
        assert_problem(lived.get(f"{path}as_of=0"), 404, "unknown-record")
    assert "as_of" not in lived.get("records/tasks/x").json


def test_a_moment_may_be_a_time(lived):
    """
    RFC 3339 with any offset, by the clock of `received_at`.
    """
    second = lived.verdicts[1]["received_at"]
    assert lived.get(f"records?as_of={second}").json["as_of"] >= 2
    offset = quote(second.replace("Z", "+00:00"))
    assert lived.get(f"records/tasks/x?as_of={offset}").json["as_of"] >= 2
    assert lived.get("records?as_of=1970-01-01T00:00:00Z").json["as_of"] == 0
    assert lived.get("records?as_of=2999-01-01T00:00:00%2B01:00").json["as_of"] == 3


@pytest.mark.parametrize(
    "moment", ["", "-1", "1.5", "soon", "2026-11-23", "2026-11-23T09:00:00", "9" * 17, quote("١")]
)
def test_what_is_no_moment_is_refused(lived, moment):
    for path in ("records?as_of", "diff?from", "records/tasks/x?as_of"):
        assert_problem_of(lived.get(f"{path}={moment}"), path.partition("?")[2])


def assert_problem_of(answer, parameter: str) -> None:
    assert (answer.status_code, answer.json["code"]) == (400, "invalid-request")
    assert [error["parameter"] for error in answer.json["errors"]] == [parameter]


def test_what_does_not_go_together_is_named(lived):
    assert_problem_of(lived.get("records?as_of=1&changed_after=0"), "changed_after")
    assert_problem_of(lived.get("diff?from=2&to=1"), "from")
    assert_problem_of(lived.get("conflicts?id=x"), "collection")
    assert_problem_of(lived.get("history/tasks/x?order=up"), "order")


@pytest.mark.parametrize("path", ["records?as_of=9", "records/tasks/x?as_of=9", "diff?from=0&to=9"])
def test_a_moment_beyond_the_log(lived, path):
    assert_problem(lived.get(path), 409, "log-behind", head=3)


def test_the_history_of_a_record(lived):
    """
    The exact form: the device, the times, the values before and after, and the lost values.
    """
    body = lived.get("history/tasks/x").json
    assert body.keys() == {"log", "head", "projected", "versions", "cursor"}
    assert body["cursor"] is None
    common = {
        "op": "put",
        "collection": "tasks",
        "id": "x",
        "field": "title",
        "rule": "concurrent",
    }
    assert body["versions"] == [
        {
            "seq": verdict["seq"],
            "changeset": verdict["id"],
            "device": device,
            "made_at": made_at,
            "received_at": verdict["received_at"],
            **version,
        }
        for verdict, device, made_at, version in zip(
            lived.verdicts,
            (A, B, A),
            ("2026-11-23T08:59:00.000Z", "2026-11-23T09:00:00.000Z", "2026-11-23T09:00:00.000Z"),
            (
                {
                    "is_deleted": False,
                    "changed": {"title": {"to": "Milk"}, "n": {"to": 1}},
                    "lost": [],
                },
                {
                    "is_deleted": False,
                    "changed": {"title": {"from": "Milk", "to": "Bread"}},
                    "lost": [
                        {
                            "seq": 2,
                            **common,
                            "lost": {"value": "Milk", "seq": 1, "device": A},
                            "won": {"value": "Bread", "seq": 2, "device": B},
                        }
                    ],
                },
                {
                    "is_deleted": True,
                    "changed": {"title": {"from": "Bread"}, "n": {"from": 1}},
                    "lost": [],
                },
            ),
            strict=True,
        )
    ]


def test_a_history_pages_in_both_directions(lived):
    for order, seqs in (("oldest", [1, 2, 3]), ("newest", [3, 2, 1])):
        seen, cursor = [], ""
        for _ in range(4):
            page = lived.get(f"history/tasks/x?limit=1&order={order}{cursor}").json
            seen += [version["seq"] for version in page["versions"]]
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        assert seen == seqs


@pytest.mark.parametrize("id", ["a/b", "//", "a%2Fb", "é b", "..", "🐘"], ids=ascii)
def test_any_id_has_its_history(client, id):
    """
    The id is percent-encoded whole, as in `/records`.
    """
    client.filled(put(id, mine=True), put("a"))
    body = client.get(f"history/tasks/{quote(id, safe='')}").json
    assert [version["changed"] for version in body["versions"]] == [{"mine": {"to": True}}]


def test_what_differs_between_two_moments(lived):
    """
    Each difference has both states and the changed fields. A missing or deleted record is null.
    """
    body = lived.get("diff?from=1&to=2").json
    assert {name: body[name] for name in ("from", "to", "cursor")} == {
        "from": 1,
        "to": 2,
        "cursor": None,
    }
    x, y = body["differences"]
    assert (x["before"]["fields"], x["after"]["fields"]) == (
        {"title": "Milk", "n": 1},
        {"title": "Bread", "n": 1},
    )
    assert x["changed"] == {"title": {"from": "Milk", "to": "Bread"}}
    assert (y["id"], y["before"], y["after"]["fields"], y["changed"]) == ("y", None, {}, {})
    assert [d["after"] for d in lived.get("diff?from=2").json["differences"]] == [None]
    assert lived.get("diff?from=0&to=0").json["differences"] == []
    assert [d["id"] for d in lived.get("diff").json["differences"]] == ["y"]


def test_a_lost_value_is_put_back_as_the_ledger_says(lived):
    """
    A client can push `restore`, with its own id and time, like any changeset.
    """
    [conflict] = lived.get(f"conflicts?collection=tasks&id=x&field=title&device={A}&since=1").json[
        "conflicts"
    ]
    own = {"id": new_id(), "made_at": "2026-11-23T09:00:00Z"}
    assert lived.push({**conflict["restore"], **own}).json["verdicts"][0]["verdict"] == "stored"
    lived.caught_up(4)
    assert lived.get("records/tasks/x").json["record"]["fields"] == {"title": "Milk"}


@pytest.mark.parametrize(
    "filter",
    [f"device={C}", "field=n", "since=2", "collection=notes", "collection=tasks&id=y"],
)
def test_filters_of_the_ledger_leave_out_the_rest(lived, filter):
    assert len(lived.get("conflicts").json["conflicts"]) == 1
    assert lived.get(f"conflicts?{filter}").json["conflicts"] == []


def test_a_space_without_history_says_so(app_with):
    """
    Records that older code folded lack versions, so the service refuses to answer.
    """

    class Older:
        def as_of(self, *_):
            raise HistoryUnavailable

    answer = app_with(master=Older()).get("records?as_of=1")

    assert_problem(answer, 503, "history-unavailable")
    assert answer.headers["Retry-After"] == "60"
