"""The contract of every History: each moment is the log folded up to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foldlog.domain.errors import InvalidRequest, LogBehind, UnknownRecord, UnknownSpace
from foldlog.domain.history import NOW, Point
from foldlog.domain.ledger import ConflictsFilter
from foldlog.domain.ports import AsOfQuery, DiffQuery, HistoryQuery, RecordsQuery, encode_cursor
from foldlog.domain.times import parse_time
from tests.helpers import A, B, C, changeset, delete, kept_conflict, new_id, push_of, put
from tests.history import Past, all_as_of, texts, whole_diff, whole_history
from tests.integration.test_projector import random_history
from tests.oracle import canonical

from .test_master_table import CURSORS

PUSHES = 40


@pytest.fixture
def past(store, space) -> Past:
    """A random history that the master table has applied completely."""
    head = random_history(store, space, seed=11, pushes=PUSHES)
    store.page(space, RecordsQuery(1, at_least=head))
    return Past(store, space)


def test_any_seq_is_the_fold_up_to_it(store, space, past):
    """From before the first event to the last one: the live records, in the order of their
    creation.
    """
    for seq in range(past.head + 1):
        as_of, found = all_as_of(store, space, Point(seq))
        assert as_of == seq
        assert texts(found) == texts(past.as_of(seq))


@pytest.mark.parametrize("collection", [None, "tasks", "notes", "never"])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_of_a_moment_visit_every_record_once(store, space, past, collection, limit):
    for seq in (0, 1, 7, past.head // 2, past.head):
        _, found = all_as_of(store, space, Point(seq), limit=limit, collection=collection)
        assert texts(found) == texts(past.as_of(seq, collection))


def test_all_pages_are_of_one_moment(store, space, past):
    """Also for "now" or a future time, while the log grows between the pages."""
    first = store.as_of(space, AsOfQuery(NOW, 1))
    store.push(space, push_of(changeset(*(delete(id) for id in "abc"), base=past.head)))
    rest = store.as_of(space, AsOfQuery(NOW, 100, cursor=first.cursor))
    assert first.as_of == rest.as_of == past.head
    found = list(map(json.loads, first.records + rest.records))
    assert texts(found) == texts(past.as_of(past.head))


def test_one_record_at_any_seq(store, space, past):
    """Tombstones are found too. Before its creation the record is unknown."""
    keys = [*past.views(past.head)]
    assert len(keys) > 4
    for key in keys:
        for seq in range(past.head + 1):
            view = past.views(seq).get(key)
            if view is None:
                with pytest.raises(UnknownRecord):
                    store.record_as_of(space, key, Point(seq))
            else:
                page = store.record_as_of(space, key, Point(seq))
                assert texts(map(json.loads, page.records)) == texts([view])
                assert (page.as_of, page.head) == (seq, past.head)


def test_a_time_is_the_last_event_up_to_it(store, space, past):
    """Times are the server's. Before the first event the space is empty, and the future equals
    now.
    """
    times = [parse_time(event["received_at"]) for event in past.events]
    for ms in {*times, *(t - 1 for t in times), *(t + 1 for t in times), -(10**13), 10**14}:
        expected = sum(t <= ms for t in times)
        assert all_as_of(store, space, Point(time=ms))[0] == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_the_history_of_a_record(store, space, past, limit):
    """Every event that names the record, with its device, its changes and its losses, in both
    directions.
    """
    losses = 0
    for key in past.views(past.head):
        expected = past.history(key)
        losses += sum(len(version["lost"]) for version in expected)
        found = whole_history(store, space, key, limit=limit)
        assert texts(found) == texts(expected)
        newest = whole_history(store, space, key, limit=limit, order="newest")
        assert newest == found[::-1]
    assert losses > 10


def test_a_history_leads_to_the_record(store, space, past):
    """Applying the changes one after another yields every version, and finally the record."""
    for key, view in past.views(past.head).items():
        fields: dict[str, Any] = {}
        for version in whole_history(store, space, key):
            for name, change in version["changed"].items():
                assert canonical(fields.get(name)) == canonical(change.get("from"))
                fields.pop(name, None)
                if "to" in change:
                    fields[name] = change["to"]
            assert canonical(fields) == canonical(past.views(version["seq"])[key]["fields"])
        assert canonical(fields) == canonical(view["fields"])


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("collection", [None, "tasks", "notes"])
def test_a_diff_is_two_folds_compared(store, space, past, limit, collection):
    moments = range(0, past.head + 1, 5)
    for start in moments:
        for to in moments:
            if start <= to:
                found = whole_diff(
                    store, space, Point(start), Point(to), limit=limit, collection=collection
                )
                assert texts(found) == texts(past.diff(start, to, collection))
    assert texts(whole_diff(store, space, Point(3), collection=collection)) == texts(
        past.diff(3, past.head, collection)
    )


def test_what_changed_back_is_no_difference(store, space):
    """A difference omits records that were created and deleted again, or created anew with the
    same fields.
    """
    store.push(space, push_of(changeset(put("x", n=1), put("y", n=1))))
    store.push(space, push_of(changeset(put("x", n=2), put("z"), delete("y"), base=1)))
    store.push(space, push_of(changeset(put("x", n=1.0), delete("z"), put("y", n=1), base=2)))
    assert whole_diff(store, space, Point(1), Point(3)) == []
    assert [d["id"] for d in whole_diff(store, space, Point(1), Point(2))] == ["x", "y", "z"]


def test_pages_of_large_records_are_bounded_and_lose_nothing(store, space):
    """A page ends early before it grows too large, and has at least one version."""
    for n in range(9):
        text = chr(97 + n) * 1_900_000
        store.push(space, push_of(changeset(put("r", text=text), put(f"r{n}", text=text), base=n)))
    past = Past(store, space)
    assert all_as_of(store, space, Point(9))[1] == past.as_of(9)
    assert whole_history(store, space, ("tasks", "r")) == past.history(("tasks", "r"))
    newest = whole_history(store, space, ("tasks", "r"), order="newest")
    assert newest == past.history(("tasks", "r"))[::-1]
    assert whole_diff(store, space, Point(0), Point(9)) == past.diff(0, 9)
    for page in (
        store.as_of(space, AsOfQuery(Point(9), 100)).records,
        store.history(space, ("tasks", "r"), HistoryQuery(100)).versions,
        store.diff(space, DiffQuery(Point(0), NOW, 100)).differences,
    ):
        assert 0 < sum(map(len, page)) < 30_000_000


def test_a_history_of_large_losses_is_bounded_and_loses_nothing(store, space):
    """Lost values are outside of the versions, but count for the size of a page."""
    store.push(space, push_of(changeset(put("r", a=0)), device=A))
    for n in range(6):
        early = f"2026-11-23T08:0{n}:00Z"
        lost = put("r", a=chr(97 + n) * 1_500_000, b=chr(65 + n) * 400_000)
        store.push(space, push_of(changeset(lost, made_at=early), device=B))
        store.push(space, push_of(changeset(put("r", b=n), base=n), device=C))
    past = Past(store, space)
    store.page(space, RecordsQuery(1, at_least=past.head))
    for order in ("oldest", "newest"):
        found = whole_history(store, space, ("tasks", "r"), order=order)
        expected = past.history(("tasks", "r"))
        assert found == (expected if order == "oldest" else expected[::-1])


# -- The ledger --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_the_ledger_by_record_field_hand_and_seq(store, space, past, limit):
    """Each filter, and all filters together, select from the whole ledger."""
    whole = ledger(store, space, ConflictsFilter(), 100)
    assert len(whole) > 20
    seen = set()
    for wanted in (
        *(ConflictsFilter(collection=c) for c in ("tasks", "notes")),
        *(ConflictsFilter(collection="tasks", id=id) for id in "abcz"),
        *(ConflictsFilter(field=field) for field in ("title", "n", "z", "\0é")),
        *(ConflictsFilter(device=device) for device in (A, B, C, new_id())),
        *(ConflictsFilter(since=seq) for seq in (0, 7, PUSHES // 2, past.head)),
        ConflictsFilter(collection="tasks", id="a", field="n", device=A, since=5),
    ):
        expected = [
            entry
            for entry in whole
            if wanted.collection in (None, entry["collection"])
            and wanted.id in (None, entry["id"])
            and wanted.field in (None, entry["field"])
            and wanted.device in (None, entry["lost"]["device"], entry["won"]["device"])
            and entry["seq"] > wanted.since
        ]
        seen.add(len(expected))
        assert ledger(store, space, wanted, limit) == expected
    assert len(seen) > 5


def test_both_hands_say_whose_and_when(store, space, past):
    """A conflict has the kept value, and for each side the device and the time of its event."""
    page = store.conflicts(space, limit=1_000, cursor=None)
    assert sorted(map(canonical, map(kept_conflict, page.conflicts))) == sorted(
        canonical(loss) for losses in past.losses for loss in losses
    )
    for entry in map(json.loads, page.conflicts):
        for hand in (entry["lost"], entry["won"]):
            event = past.events[hand["seq"] - 1]
            assert (hand["changeset"], hand["device"]) == (event["id"], event["device"])
            assert hand["made_at"] == event["made_at"]
            assert hand["received_at"] == event["received_at"]


def ledger(store, space, wanted: ConflictsFilter, limit: int) -> list[dict[str, Any]]:
    found, cursor = [], None
    for _ in range(1_000):
        page = store.conflicts(space, limit=limit, cursor=cursor, wanted=wanted)
        found += map(kept_conflict, page.conflicts)
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError("still more conflicts")


# -- Refused questions --------------------------------------------------------------------------


def questions(store, space, moment: Point):
    return (
        lambda: store.as_of(space, AsOfQuery(moment, 1)),
        lambda: store.record_as_of(space, ("tasks", "a"), moment),
        lambda: store.diff(space, DiffQuery(Point(0), moment, 1)),
    )


def test_a_moment_beyond_the_log(store, space, past):
    """The server was restored, or the seq is from another space. A wait would be in vain."""
    for ask in questions(store, space, Point(past.head + 1)):
        with pytest.raises(LogBehind):
            ask()


@pytest.mark.parametrize("moment", [Point(0), Point(time=0), NOW])
def test_an_unknown_space(store, space, moment):
    for ask in questions(store, space, moment):
        with pytest.raises(UnknownSpace):
            ask()
    with pytest.raises(UnknownSpace):
        store.history(space, ("tasks", "a"), HistoryQuery(1))


def test_a_record_that_never_was_has_no_history(store, space):
    store.push(space, push_of(changeset(put("r"), delete("never"))))
    store.page(space, RecordsQuery(1, at_least=1))
    for id in ("never", "nobody"):
        with pytest.raises(UnknownRecord):
            store.history(space, ("tasks", id), HistoryQuery(1))


def test_a_diff_goes_forward(store, space, past):
    with pytest.raises(InvalidRequest, match="after `to`"):
        store.diff(space, DiffQuery(Point(2), Point(1), 1))


def test_a_cursor_that_no_page_gave(store, space, past):
    """Includes cursors of another question and of another moment."""
    strange = [
        *CURSORS,
        encode_cursor(1, 2, 3, "a"),
        encode_cursor(5, "tasks", 1, "a"),
        encode_cursor(0, 5, 1, "a\0", "b"),
        encode_cursor(1, 2, 1, "a", "b"),
    ]
    for cursor in strange:
        with pytest.raises(InvalidRequest):
            store.as_of(space, AsOfQuery(Point(4), 1, cursor=cursor))
        with pytest.raises(InvalidRequest):
            store.diff(space, DiffQuery(Point(0), Point(4), 1, cursor=cursor))
    for cursor in (*CURSORS[:10], encode_cursor(1, 2)):
        with pytest.raises(InvalidRequest):
            store.history(space, ("tasks", "a"), HistoryQuery(1, cursor=cursor))
