"""POST /v1/spaces/{space}/changesets"""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from foldlog.domain.names import id_of_local
from tests.helpers import A, B, add, changeset, put

from .conftest import SENT_AT, assert_problem


def test_a_push_is_answered_with_the_log_and_a_verdict_for_each(client):
    """
    The first push creates the space. The response has a verdict for every changeset, in order.
    """
    first, second = changeset(put("x")), changeset(put("y"))

    answer = client.push(first, second)

    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    body = answer.json
    assert UUID(body.pop("log"))
    verdicts = body.pop("verdicts")
    assert body == {"head": 2}
    assert [(v["id"], v["verdict"], v["seq"]) for v in verdicts] == [
        (first["id"], "stored", 1),
        (second["id"], "stored", 2),
    ]
    assert verdicts[0].keys() == {"id", "verdict", "seq", "received_at", "time"}


def test_the_same_push_again_is_answered_as_the_first_time(client):
    """
    A response can be lost on the way. A repeated push stores the changesets once, and gets the same
    verdicts.
    """
    one = changeset(put(title="Milk"), counter=1)
    first = client.push(one).json

    again = client.push(one).json

    assert again == {**first, "verdicts": [{**first["verdicts"][0], "duplicate": True}]}


def test_a_local_id_is_answered_with_its_id(client):
    """
    A device can name a record by its own key, and learns the id that other devices see.
    """
    op = {"op": "put", "collection": "tasks", "local_id": "17", "fields": {}}

    verdict = client.push(changeset(op)).json["verdicts"][0]

    assert verdict["ids"] == {"tasks": {"17": id_of_local(A, "tasks", "17")}}


def test_records_are_returned_when_asked_for(client):
    """
    An app can show the merged state at once, without another request.
    """
    verdict = client.push(changeset(put("x", n=1)), **{"return": "records"}).json["verdicts"][0]

    (record,) = verdict["records"]
    assert record == {
        "collection": "tasks",
        "id": "x",
        "fields": {"n": 1},
        "is_deleted": False,
        "last_modified": verdict["received_at"],
        "seq": 1,
        "created_seq": 1,
    }


def test_a_stale_changeset_is_stored_as_refused_with_the_current_records(client):
    """
    A refusal by a guard is a verdict: the queue continues, and the app can show the present
    records.
    """
    client.push(changeset(put("x", n=1)))

    answer = client.push(changeset(put("x", n=2), guard="unchanged"), device=B)

    assert answer.status_code == 200
    (verdict,) = answer.json["verdicts"]
    assert verdict["verdict"] == "refused"
    assert verdict["refusal"]["code"] == "stale"
    assert verdict["records"][0]["fields"] == {"n": 1}


def test_an_empty_push_makes_the_space(client):
    """
    A new app has no changesets yet, but needs the id of its log.
    """
    answer = client.push()

    assert answer.json.keys() == {"log", "head", "verdicts"}
    assert (answer.json["head"], answer.json["verdicts"]) == (0, [])


def test_an_id_with_other_content_is_refused(client):
    """
    An id names one content permanently. A client that reuses it has a bug.
    """
    one = changeset(put(title="Milk"))
    client.push(one)

    answer = client.push(changeset(put("other")), {**one, "ops": [put(title="Bread")]})

    assert_problem(answer, 409, "id-reused", index=1, id=one["id"])
    assert client.get("events").json["head"] == 1


def test_a_counter_that_skips_names_the_one_expected(client):
    """
    A changeset was lost on the way. The device renumbers from the expected counter.
    """
    answer = client.push(changeset(counter=1), changeset(counter=3))

    assert_problem(answer, 409, "counter-gap", index=1, counter=3, expected=2)


def test_an_old_counter_means_a_cloned_device(client):
    """
    Two installations with one device id would overwrite each other's numbers.
    """
    client.push(changeset(counter=1))

    answer = client.push(changeset(counter=1))

    assert_problem(answer, 409, "device-forked", index=0, counter=1, expected=2)


def test_a_base_beyond_the_head_is_refused(client):
    """
    The device saw events that this log lacks, because the server was restored from a backup.
    """
    log = client.push().json["log"]

    answer = client.push(changeset(base=9))

    assert_problem(answer, 409, "log-behind", index=0, log=log, head=0)


def test_an_unreadable_changeset_is_named_by_index_and_pointer(client):
    """
    The client sets that changeset aside and sends the others. The pointer leads a developer to the
    wrong member, from the top of the body.
    """
    answer = client.push(changeset(), changeset(add(taps="1")))

    pointer = "/changesets/1/ops/0/fields/taps"
    assert_problem(
        answer,
        422,
        "invalid-changeset",
        index=1,
        pointer=pointer,
        errors=[{"pointer": pointer, "detail": "add takes numbers"}],
    )


def test_a_changeset_of_the_wrong_shape_is_named_too(client):
    """
    An unknown member is an error, because it might have been meant as a guard.
    """
    answer = client.push({**changeset(), "gaurd": "unchanged"})

    assert answer.json["index"] == 0
    assert answer.json["pointer"] == "/changesets/0"
    assert "gaurd" in answer.json["detail"]


def test_changesets_that_are_no_array_have_no_index(client):
    """
    The error concerns the whole member.
    """
    answer = client.post(
        "changesets", {"device": A, "sent_at": "2026-11-23T09:00:00Z", "changesets": 1}
    )

    errors = [{"pointer": "/changesets", "detail": "the changesets of a push must be an array"}]
    assert_problem(answer, 400, "invalid-request", errors=errors)


@pytest.mark.parametrize(
    "half", [r"\ud83d", r"\uD83D off", r"\udc18", r"\ud83d\ud83d\udc18", r"\\\ud83d", r"\ud83d\n"]
)
def test_half_an_emoji_is_named_by_its_index(client, half):
    r"""
    JavaScript cuts strings inside a surrogate pair and sends `"\ud83d"`. The response names the
    changeset, because it would block the queue of its device otherwise.
    """
    body = {
        "device": A,
        "sent_at": SENT_AT,
        "changesets": [changeset(put(title="\U0001f418 \\ud83d")), changeset(put(title="HALF"))],
    }

    bad = client.post("changesets", json.dumps(body).replace("HALF", half).encode())

    assert (bad.status_code, bad.json["code"]) == (422, "invalid-changeset")
    assert (bad.json["index"], bad.json["pointer"]) == (1, "/changesets/1")


def test_too_many_operations_can_never_be_stored(client):
    """
    The status is 422 instead of 413, because a smaller batch would fail as well.
    """
    answer = client.push(changeset(*[put(str(n)) for n in range(1_001)]))

    assert_problem(
        answer, 422, "limit-exceeded", index=0, limit="operations_per_changeset_max", value=1_000
    )
