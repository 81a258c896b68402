"""The contract of every MasterTable: it is the fold of the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foldlog.domain.errors import InvalidRequest, LogBehind, UnknownRecord, UnknownSpace
from foldlog.domain.ports import RecordsQuery, encode_cursor
from tests.helpers import (
    A,
    B,
    C,
    add,
    all_conflicts,
    all_records,
    changeset,
    delete,
    pull_all,
    push_of,
    put,
)
from tests.oracle import Oracle, canonical

Json = dict[str, Any]
#: in the order of code points, which is also the order of UTF-8 bytes
IDS = ["", "A", "Z", "_", "a", "a b", "a/b", "aa", "b", "z", "É", "é", "\uffee", "\U0001f600"][1:]
NASTY = {
    "text": "\0 \u2028 é \U0001f600 \\ \"'",
    "\0": 1,
    "": None,
    "numbers": [0.1, 1e308, -0.0, 1.0, 1, 2**53 - 1, True],
}


def sync(store, space, *ops: Json, device: str = A, **members: Any) -> int:
    """Stores one changeset. Returns its seq."""
    return store.push(space, push_of(changeset(*ops, **members), device=device)).head


def keys(records: list[Json]) -> list[tuple[str, str]]:
    return [(record["collection"], record["id"]) for record in records]


def oracle_of(store, space) -> Oracle:
    return Oracle().fold(*map(json.loads, pull_all(store, space)))


@pytest.fixture
def lived_in(store, space):
    """A space with a history that uses every rule of the merge several times."""
    sync(store, space, *(put(id, "tasks", n=1, text=id) for id in IDS))  # 1: one large changeset
    sync(store, space, put("a", "Notes", **NASTY), add("a", "stats", n=1), device=B)  # 2
    sync(store, space, put("a", n=2), put("b", n=2), base=0, device=B)  # 3: concurrent
    sync(store, space, delete("z"), delete("never"), base=3, device=C)  # 4
    sync(store, space, put("z", n=3), base=0, device=B)  # 5: made before the delete
    sync(store, space, add("a", "stats", n=0.5), add("aa", text=2), base=4, device=C)  # 6
    sync(store, space, delete("a"), delete("b"), delete("a", "Notes"), base=2, device=A)  # 7
    sync(store, space, put("a", n=9), base=7, device=B)  # 8: made anew
    sync(store, space, {**put("A", n=9), "if_seq": 99}, device=B)  # 9: refused
    sync(store, space, {**put("Z"), "unset": ["n"]}, put("Z", text="Z"), base=9)  # 10
    return space


HEAD = 10


def test_it_is_the_fold_of_the_log(store, lived_in):
    """Live records, tombstones and the ledger equal those of an independent fold."""
    oracle = oracle_of(store, lived_in)
    views = list(oracle.views().values())

    live = all_records(store, lived_in, at_least=HEAD)
    assert list(map(canonical, live)) == [canonical(v) for v in views if not v["is_deleted"]]
    changed = all_records(store, lived_in, at_least=HEAD, changed_after=0)
    assert sorted(map(canonical, changed)) == sorted(map(canonical, views))
    ledger = all_conflicts(store, lived_in, at_least=HEAD)
    assert sorted(map(canonical, ledger)) == sorted(map(canonical, oracle.ledger))
    assert {entry["rule"] for entry in ledger} == {"deleted", "concurrent", "delete", "not-addable"}


def test_a_record_has_these_members(store, space):
    """The wire format of docs/reference/protocol.md, with the values exactly as sent."""
    fields = NASTY
    head = sync(store, space, put("r", **fields))
    page = store.page(space, RecordsQuery(9, at_least=head))
    event = json.loads(pull_all(store, space)[0])
    assert [list(json.loads(record).items()) for record in page.records] == [
        [
            ("collection", "tasks"),
            ("id", "r"),
            ("fields", fields),
            ("is_deleted", False),
            ("last_modified", event["received_at"]),
            ("seq", 1),
            ("created_seq", 1),
        ]
    ]
    assert json.dumps(json.loads(page.records[0])["fields"]) == json.dumps(fields)
    assert page.log == store.push(space, push_of()).log


# -- By key ------------------------------------------------------------------------------------


@pytest.mark.parametrize("collection", [None, "tasks", "stats", "Notes", "never"])
def test_paging_by_key_visits_every_live_record_once(store, lived_in, collection):
    """In the order of (collection, id) by code point. The last page has a null cursor."""
    views = oracle_of(store, lived_in).views()
    expected = [
        key
        for key, view in sorted(views.items())
        if not view["is_deleted"] and collection in (None, key[0])
    ]
    for limit in [*range(1, len(expected) + 2), 100]:
        found = all_records(store, lived_in, at_least=HEAD, limit=limit, collection=collection)
        assert keys(found) == expected


def test_a_page_is_full_while_there_is_more(store, lived_in):
    """The cursor is null exactly at the end."""
    live = len(all_records(store, lived_in, at_least=HEAD))
    for limit in range(1, live + 2):
        page = store.page(lived_in, RecordsQuery(limit))
        assert len(page.records) == min(limit, live)
        assert (page.cursor is None) == (limit >= live)


def test_a_space_with_nothing_in_it_has_an_empty_page(store, space):
    """A refused changeset, and a delete of a missing record, are events without a record."""
    sync(store, space, {**put(), "if_seq": 9})
    head = sync(store, space, delete("never"))
    for changed_after in (None, 0):
        page = store.page(space, RecordsQuery(9, changed_after=changed_after, at_least=head))
        assert (page.records, page.cursor) == ([], None)
    assert all_conflicts(store, space, at_least=head) == []


def test_records_that_change_between_two_pages_do_not_disturb_the_paging(store, space):
    """A key that stays is visited once, while its neighbours change."""
    sync(store, space, *(put(id) for id in "bdfh"))
    page = store.page(space, RecordsQuery(2, at_least=1))
    head = sync(store, space, delete("b"), delete("d"), put("a"), put("e"), put("f", n=1))
    rest = store.page(space, RecordsQuery(9, cursor=page.cursor, at_least=head))
    assert keys(map(json.loads, page.records + rest.records)) == [("tasks", id) for id in "bdefh"]


# -- By seq ------------------------------------------------------------------------------------


@pytest.mark.parametrize("collection", [None, "tasks", "stats"])
def test_what_changed_since_collapsed(store, lived_in, collection):
    """Each record that changed after the seq comes once, in its current state, by seq.
    Tombstones come too.
    """
    views = [
        view
        for key, view in oracle_of(store, lived_in).views().items()
        if collection in (None, key[0])
    ]
    views.sort(key=lambda view: (view["seq"], view["collection"], view["id"]))
    for after in [*range(HEAD + 1), HEAD + 5]:
        expected = [canonical(view) for view in views if view["seq"] > after]
        for limit in (1, 2, 3, 100):
            found = all_records(
                store,
                lived_in,
                at_least=HEAD,
                limit=limit,
                changed_after=after,
                collection=collection,
            )
            assert list(map(canonical, found)) == expected


def test_a_page_by_seq_never_splits_a_seq(store, lived_in):
    """A client may keep the last seq and continue after it."""
    for limit in range(1, 20):
        after, pages, cursor = 0, [], None
        for _ in range(HEAD + 2):
            query = RecordsQuery(limit, changed_after=0, cursor=cursor, at_least=HEAD)
            page = store.page(lived_in, query)
            again = store.page(lived_in, RecordsQuery(limit, changed_after=after))
            assert page.records == again.records
            pages.append({json.loads(record)["seq"] for record in page.records})
            after, cursor = max(pages[-1], default=after), page.cursor
            if cursor is None:
                break
        assert cursor is None
        assert all(pages[:-1]), "a page with another after it is not empty"
        seqs = [seq for page in pages for seq in sorted(page)]
        assert seqs == sorted(set(seqs))


def test_what_moved_nothing_is_no_change(store, space):
    """An equal value, a losing value and a second delete leave the record as it is."""
    sync(store, space, put("r", n=1), put("gone"), delete("gone"))
    sync(store, space, put("r", n=1.0), delete("gone"), base=1)
    head = sync(store, space, put("gone", n=2), base=0, device=B)
    assert all_records(store, space, at_least=head, changed_after=1) == []


# -- One record --------------------------------------------------------------------------------


def test_one_record(store, lived_in):
    """Each record that ever existed is found, tombstones too, with the same content as in the
    pages.
    """
    for view in all_records(store, lived_in, at_least=HEAD, changed_after=0):
        page = store.record(lived_in, (view["collection"], view["id"]), at_least=HEAD)
        assert list(map(json.loads, page.records)) == [view]
        assert (page.cursor, page.head) == (None, HEAD)
        assert page.projected >= HEAD


@pytest.mark.parametrize("key", [("tasks", "nobody"), ("tasks", "never"), ("nowhere", "a")])
def test_a_record_that_never_was(store, lived_in, key):
    """A record that was only deleted is unknown too, because a delete alone makes no tombstone."""
    with pytest.raises(UnknownRecord):
        store.record(lived_in, key, at_least=HEAD)


# -- The ledger --------------------------------------------------------------------------------


def test_paging_the_ledger_visits_every_conflict_once(store, lived_in):
    """In the order in which they were decided."""
    whole = all_conflicts(store, lived_in, at_least=HEAD)
    assert [entry["seq"] for entry in whole] == [3, 3, 5, 6, 7, 7]
    for limit in range(1, len(whole) + 2):
        assert all_conflicts(store, lived_in, at_least=HEAD, limit=limit) == whole
        page = store.conflicts(lived_in, limit=limit, cursor=None)
        assert len(page.conflicts) == min(limit, len(whole))
        assert (page.head, page.log) == (HEAD, store.push(lived_in, push_of()).log)
        assert page.projected >= HEAD


def test_a_conflict_says_what_lost_to_what(store, space):
    """Values are as sent. A side without a value omits `value`; null is a value."""
    sync(store, space, put(a=None, b=NASTY), device=A)
    head = sync(store, space, delete(), base=0, device=B)
    common = {"seq": 2, "op": "delete", "collection": "tasks", "id": "r", "rule": "delete"}
    won = {"seq": 2, "device": B}
    found = all_conflicts(store, space, at_least=head)
    assert sorted(found, key=lambda entry: entry["field"]) == [
        {**common, "field": "a", "lost": {"value": None, "seq": 1, "device": A}, "won": won},
        {**common, "field": "b", "lost": {"value": NASTY, "seq": 1, "device": A}, "won": won},
    ]


# -- Local ids ---------------------------------------------------------------------------------


def local(local_id: str, collection: str = "tasks", **members: Any) -> Json:
    return {"op": "put", "collection": collection, "local_id": local_id, **members}


def local_ids(store, space, device: str) -> Json:
    page = store.local_ids(space, device, limit=100, cursor=None)
    assert page.cursor is None
    return page.ids


def test_local_ids_are_listed_for_each_device(store, space):
    """All that were ever answered to this device, including those of refused changesets."""
    answers = [
        store.push(space, push_of(*changesets, device=device)).verdicts
        for device, changesets in [
            (A, [changeset(local("7"), local("é/8", "notes")), changeset(local("7"))]),
            (B, [changeset(local("7"))]),
            (A, [changeset(local("9", if_seq=5))]),
        ]
    ]
    store.page(space, RecordsQuery(1, at_least=4))
    first, again, refused = answers[0][0], answers[0][1], answers[2][0]
    assert refused.verdict == "refused"
    assert again.ids == {"tasks": {"7": first.ids["tasks"]["7"]}}
    assert local_ids(store, space, A) == {
        "tasks": {**first.ids["tasks"], **refused.ids["tasks"]},
        "notes": first.ids["notes"],
    }
    assert local_ids(store, space, B) == answers[1][0].ids
    assert local_ids(store, space, C) == {}


def test_paging_the_local_ids_visits_each_once(store, space):
    """By collection and key, for any size of a page. A page may end within a collection."""
    keys = [(collection, key) for collection in ("Notes", "a", "tasks") for key in IDS]
    ops = [local(key, collection) for collection, key in reversed(keys)]
    head = store.push(space, push_of(changeset(*ops))).head
    store.page(space, RecordsQuery(1, at_least=head))
    whole = local_ids(store, space, A)
    for limit in range(1, len(keys) + 2):
        seen, cursor = [], None
        for start in range(0, len(keys), limit):
            page = store.local_ids(space, A, limit=limit, cursor=cursor)
            found = [(of, key, id) for of, ids in page.ids.items() for key, id in ids.items()]
            assert len(found) == min(limit, len(keys) - start)
            seen, cursor = seen + found, page.cursor
        assert cursor is None
        assert seen == [(of, key, whole[of][key]) for of, key in keys]


# -- Refused questions --------------------------------------------------------------------------


def test_an_unknown_space(store, space):
    """Every question raises `UnknownSpace`."""
    for ask in (
        lambda: store.page(space, RecordsQuery(1)),
        lambda: store.page(space, RecordsQuery(1, changed_after=0)),
        lambda: store.record(space, ("tasks", "r")),
        lambda: store.conflicts(space, limit=1, cursor=None),
        lambda: store.local_ids(space, A, limit=1, cursor=None),
    ):
        with pytest.raises(UnknownSpace):
            ask()


CURSORS = [
    "x",
    "!!!!",
    "é",
    "\0",
    "====",
    "W10",
    "bnVsbA",
    encode_cursor(),
    encode_cursor("a"),
    encode_cursor("a", "b", "c"),
    encode_cursor("a", "b\0"),
    encode_cursor(-1),
    encode_cursor(-1, -1),
    encode_cursor(2**63),
    encode_cursor(2**63, 2**63),
    encode_cursor(10**30, 1),
    encode_cursor(1, 2, 3),
    encode_cursor("a", 1),
    encode_cursor(1, "a"),
]


def test_a_cursor_that_no_page_gave(store, lived_in):
    """The request is refused as invalid before it reaches a database."""
    for cursor in CURSORS:
        with pytest.raises(InvalidRequest):
            store.page(lived_in, RecordsQuery(1, cursor=cursor))
        with pytest.raises(InvalidRequest):
            store.page(lived_in, RecordsQuery(1, changed_after=0, cursor=cursor))
        with pytest.raises(InvalidRequest):
            store.conflicts(lived_in, limit=1, cursor=cursor)
        with pytest.raises(InvalidRequest):
            store.local_ids(lived_in, A, limit=1, cursor=cursor)


def test_a_cursor_of_another_question(store, lived_in):
    """Cursors by key and by seq are different."""
    by_key = store.page(lived_in, RecordsQuery(1, at_least=HEAD)).cursor
    by_seq = store.page(lived_in, RecordsQuery(1, changed_after=0)).cursor
    assert by_key
    assert by_seq
    with pytest.raises(InvalidRequest):
        store.page(lived_in, RecordsQuery(1, cursor=by_seq))
    with pytest.raises(InvalidRequest):
        store.page(lived_in, RecordsQuery(1, cursor=by_key, changed_after=0))


def test_read_your_own_writes(store, space):
    """With `at_least`, a read includes the acknowledged event, and returns the seq of its state."""
    for n in range(3):
        head = sync(store, space, put(n=n))
        page = store.page(space, RecordsQuery(1, at_least=head))
        assert json.loads(page.records[0])["fields"] == {"n": n}
        assert (page.head, page.projected) == (head, head)


def test_what_does_not_come_is_not_waited_for_without_end(store, space):
    """A read that wants more than the log has is refused at once."""
    head = sync(store, space, put())
    with pytest.raises(LogBehind):
        store.page(space, RecordsQuery(1, at_least=head + 1))


@pytest.mark.parametrize("changed_after", [None, 0])
def test_pages_are_bounded_by_bytes_and_lose_nothing(store, space, changed_after):
    """A page ends early before it grows too large. A single seq that is larger comes whole."""
    for n in range(7):
        store.push(space, push_of(changeset(put(f"r{n}", text="x" * 1_900_000))))
    store.push(space, push_of(changeset(*(put(f"s{n}", text="y" * 1_900_000) for n in range(2)))))
    large = [changeset(put(f"r{n}", text="z" * 1_900_000), base=8) for n in range(3)]
    head = store.push(space, push_of(*large)).head
    seen, cursor = [], None
    for _ in range(20):
        query = RecordsQuery(100, changed_after=changed_after, cursor=cursor, at_least=head)
        page = store.page(space, query)
        assert 0 < sum(map(len, page.records)) < 12_000_000
        seen += [json.loads(document)["id"] for document in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted([*(f"r{n}" for n in range(7)), "s0", "s1"])
