"""The contract of every EventStore."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from foldlog.domain import proofs
from foldlog.domain.errors import (
    CounterGap,
    DeviceForked,
    IdReused,
    InvalidRequest,
    LimitExceeded,
    LogBehind,
    LogChanged,
    UnknownSpace,
)
from foldlog.domain.events import decode_event, short_form
from foldlog.domain.ports import Range, RangeQuery
from tests.helpers import A, B, C, add, changeset, delete, new_id, pull_all, push_of, put

NASTY = {
    '","ops":[': ',"ops":',
    "text": "\0 \u2028 é \U0001f600 \\ \"'",
    "": None,
    "numbers": [0.1, 1e308, -0.0, 1.0, 2**53 - 1],
    "_type_": {"_type_": "datetime", "_data_": "x"},
}


def range_after(store, space, after: int = 0, limit: int = 100, **query: Any) -> Range:
    return store.range_after(space, RangeQuery(after, limit, **query))


def seqs(events: list[bytes]) -> list[int]:
    return [json.loads(event)["seq"] for event in events]


@pytest.fixture
def five(store, space):
    """A log of five events by A, B, A, B (refused) and A, in the collections t, n, t+n, t and x."""
    store.push(space, push_of(changeset(put("r", "t", a=1)), device=A))
    store.push(space, push_of(changeset(put("r", "n", b=2)), device=B))
    local = {"op": "put", "collection": "t", "local_id": "7", "fields": {}}
    store.push(space, push_of(changeset(local, delete("r", "n"), base=2), device=A))
    store.push(space, push_of(changeset({**put("r", "t"), "if_seq": 9}), device=B))
    store.push(space, push_of(changeset(put("r", "x", **NASTY), base=4), device=A))
    return space


def every_push_fails(store, space, push, error, **expected) -> None:
    """Checks that each push raises with these members, and leaves log and counters as they were."""
    before = pull_all(store, space)
    for _ in range(2):
        with pytest.raises(error) as refused:
            store.push(space, push)
        assert {name: refused.value.extra[name] for name in expected} == expected
    assert pull_all(store, space) == before


# -- Appending ---------------------------------------------------------------------------------


def test_the_first_push_makes_the_space(store, space):
    """The first push creates the space. The store accepts any name."""
    with pytest.raises(UnknownSpace):
        range_after(store, space)
    receipt = store.push(space, push_of(changeset()))
    assert (receipt.head, receipt.verdicts[0].seq) == (1, 1)
    assert range_after(store, space).log == receipt.log


def test_events_are_numbered_without_a_hole(store, space):
    """Seqs follow the order of the pushes, and inside a push the order of its changesets."""
    ids = [new_id() for _ in range(6)]
    store.push(space, push_of(*(changeset(id=id) for id in ids[:1])))
    receipt = store.push(space, push_of(*(changeset(id=id) for id in ids[1:])))
    assert [answer.seq for answer in receipt.verdicts] == [2, 3, 4, 5, 6]
    assert receipt.head == 6
    events = [json.loads(event) for event in pull_all(store, space)]
    assert [(event["seq"], event["id"]) for event in events] == list(enumerate(ids, 1))


def test_an_event_is_what_the_answer_said(store, five):
    """Each reader gets the bytes of the wire format: these members, in this order, `ops` last."""
    ops = [{**put("r", "t", **NASTY), "unset": ["old"]}, add("s", "t", n=0.5), delete("q", "t")]
    sent = changeset(*ops, counter=1, base=5)
    receipt = store.push(five, push_of(sent, device=C))
    [answer], [raw] = receipt.verdicts, range_after(store, five, 5).events
    event = json.loads(raw)

    assert list(event.items()) == [
        ("seq", 6),
        ("kind", "changeset"),
        ("verdict", "stored"),
        ("id", sent["id"]),
        ("device", C),
        ("counter", 1),
        ("base", 5),
        ("made_at", "2026-11-23T09:00:00.000Z"),
        ("received_at", answer.received_at),
        ("time", answer.time),
        ("ops", ops),
    ]
    assert msgspec.json.encode(ops[0]["fields"]) in raw


def test_the_clock_of_a_log_never_goes_back(store, space):
    """The times of a log are in the order of its seqs."""
    for _ in range(5):
        store.push(space, push_of(changeset(), changeset()))
    times = [json.loads(event)["received_at"] for event in pull_all(store, space)]
    assert times == sorted(times)


def test_spaces_know_nothing_of_each_other(store, space):
    """Each space has its own log id, seqs, ids and counters."""
    sent = changeset(counter=1)
    one = store.push(space, push_of(sent))
    other = store.push(f"{space}-other", push_of(sent))
    assert one.log != other.log
    assert (other.head, other.verdicts[0].duplicate) == (1, False)
    assert len(pull_all(store, space)) == 1


def test_many_writers_at_once(store, space):
    """Every changeset has one seq, the seqs are complete, and each answer is true."""
    pushes = [push_of(*(changeset() for _ in range(n % 3 + 1))) for n in range(16)]
    with ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda push: store.push(space, push), pushes))

    answered = {answer.seq: answer.id for receipt in receipts for answer in receipt.verdicts}
    stored = [json.loads(event) for event in pull_all(store, space, limit=7)]
    assert [event["seq"] for event in stored] == list(range(1, len(stored) + 1))
    assert answered == {event["seq"]: event["id"] for event in stored}
    for receipt in receipts:
        numbers = [answer.seq for answer in receipt.verdicts]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_one_changeset_sent_by_many_at_once_is_stored_once(store, space):
    """A client that timed out sends again while its first request is still in progress."""
    push = push_of(changeset(counter=1))
    with ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda _: store.push(space, push), range(8)))
    assert sorted(receipt.verdicts[0].duplicate for receipt in receipts) == [False] + [True] * 7
    assert {receipt.verdicts[0].seq for receipt in receipts} == {1}
    assert len(pull_all(store, space)) == 1


# -- Idempotency -------------------------------------------------------------------------------


def test_a_push_that_comes_again_is_answered_as_the_first_time(store, five):
    """It is stored once, a refused changeset stays refused, and the answer has the `ids` again."""
    local = {"op": "put", "collection": "t", "local_id": "8", "fields": {"a": 1}}
    push = push_of(
        changeset(local, counter=1),
        changeset({**put("r", "t"), "if_seq": 9}, counter=2),
        changeset(counter=3),
        device=C,
    )
    first = store.push(five, push).verdicts
    log = pull_all(store, five)
    for _ in range(2):
        again = store.push(five, push).verdicts
        assert [answer.duplicate for answer in again] == [True] * 3
        for answer in again:
            answer.duplicate = False
        assert again == first
    assert pull_all(store, five) == log
    assert [answer.verdict for answer in first] == ["stored", "refused", "stored"]


def test_base_counter_and_device_may_change_when_a_device_heals(store, space):
    """They are outside of the content that must be equal. The stored event stays as it was."""
    sent = changeset(put(n=1), counter=1)
    store.push(space, push_of(sent, device=A))
    log = pull_all(store, space)
    healed = {**sent, "ops": [put(n=1.0)], "base": 1, "counter": 7}
    [answer] = store.push(space, push_of(healed, device=B)).verdicts
    assert (answer.seq, answer.duplicate) == (1, True)
    assert pull_all(store, space) == log


def test_an_id_with_other_content_is_refused(store, space):
    """The refusal names the index, and the whole push is left out."""
    sent = changeset(put(n=1))
    store.push(space, push_of(sent))
    push = push_of(changeset(), {**sent, "ops": [put(n=True)]}, changeset())
    every_push_fails(store, space, push, IdReused, index=1, id=sent["id"])


def test_counters_follow(store, space):
    """The refusal of a gap or a fork names the expected counter. The whole push is left out."""
    store.push(space, push_of(changeset(counter=1), changeset(), changeset(counter=2)))
    for counter, error in ((4, CounterGap), (2, DeviceForked), (1, DeviceForked)):
        push = push_of(changeset(), changeset(counter=counter))
        every_push_fails(store, space, push, error, index=1, counter=counter, expected=3)
    gap = push_of(changeset(counter=3), changeset(counter=5))
    every_push_fails(store, space, gap, CounterGap, index=1, counter=5, expected=4)
    store.push(space, push_of(changeset(counter=1), device=B))
    store.push(space, push_of(changeset(counter=3)))


def test_an_event_over_the_limit_is_refused(store, space):
    """A page with one event must fit into memory."""
    store.push(space, push_of(changeset()))
    push = push_of(changeset(), changeset(put(text="x" * (4 * 2**20))))
    every_push_fails(store, space, push, LimitExceeded, index=1, limit="event_bytes_max")


# -- Refused changesets ------------------------------------------------------------------------


def test_a_refused_changeset_is_an_event(store, space):
    """It uses a seq and its counter, has its reason before `ops`, and lets the device's queue go
    on.
    """
    ops = [{**put(a=1), "if_seq": 5}]
    push = push_of(changeset(*ops, counter=1), changeset(put(b=1), counter=2))
    refused, stored = store.push(space, push).verdicts
    assert (refused.verdict, refused.seq, stored.verdict, stored.seq) == ("refused", 1, "stored", 2)
    event = json.loads(pull_all(store, space)[0])
    assert (event["verdict"], event["counter"], event["ops"]) == ("refused", 1, ops)
    assert event["refusal"] == msgspec.to_builtins(refused.refusal)
    assert event["refusal"]["code"] == "stale"
    assert list(event)[-2:] == ["refusal", "ops"]
    store.push(space, push_of(changeset(counter=3)))


@pytest.mark.parametrize(
    ("guard", "is_stale"),
    [
        ({"if_seq": 2}, False),
        ({"if_seq": 1}, True),
        ({"expect": {"a": 2}}, False),
        ({"expect": {"a": 1}}, True),
        ({"expect": None}, True),
    ],
    ids=str,
)
def test_guards_are_decided_on_what_is_true_now(store, space, guard, is_stale):
    """Guards see an event as soon as it is stored, even if the projection lags."""
    store.push(space, push_of(changeset(put(a=1)), device=B))
    store.push(space, push_of(changeset(put(a=2), base=1), device=B))
    [answer] = store.push(space, push_of(changeset({**put(a=3), **guard}))).verdicts
    assert answer.verdict == ("refused" if is_stale else "stored")
    if is_stale:
        [record] = answer.records
        assert (msgspec.to_builtins(record.fields), record.seq) == ({"a": 2}, 2)


@pytest.mark.parametrize("base", range(4))
def test_the_guard_unchanged(store, space, base):
    """An operation of another device after the base breaks it, even a losing one. The device's
    own operations are allowed.
    """
    store.push(space, push_of(changeset(put(a=1), made_at="2026-11-23T09:00:00Z"), device=B))
    store.push(space, push_of(changeset(put(a=2), made_at="2026-11-22T09:00:00Z"), device=C))
    store.push(space, push_of(changeset(put(b=2)), device=A))
    sent = changeset(put(a=3), base=base, guard="unchanged")
    [answer] = store.push(space, push_of(sent, device=A)).verdicts
    assert answer.verdict == ("stored" if base >= 2 else "refused")


def test_a_push_may_want_the_records_that_it_touched(store, space):
    """The answer has the records after each changeset; for a duplicate, the current ones."""
    first = changeset(put(a=1))
    push = push_of(first, changeset(add(a=1), put("s")), wants_records=True)
    found = [
        [(record.id, record.seq, msgspec.to_builtins(record.fields)) for record in answer.records]
        for _ in range(2)
        for answer in store.push(space, push).verdicts
    ]
    assert found == [
        [("r", 1, {"a": 1})],
        [("r", 2, {"a": 2}), ("s", 2, {})],
        [("r", 2, {"a": 2})],
        [("r", 2, {"a": 2}), ("s", 2, {})],
    ]


# -- The cursor of a push ----------------------------------------------------------------------


def test_nothing_is_stored_before_the_cursor_was_checked(store, five):
    """A device with another history must leave this log as it is."""
    here = {"log": store.push(five, push_of()).log, "head": 5}
    mark = range_after(store, five, limit=3).mark
    assert mark
    every_push_fails(store, five, push_of(changeset(), after=6, mark=mark), LogBehind, **here)
    for after, other in ((3, "0" * 16), (3, ""), (0, mark), (2, mark), (4, mark)):
        every_push_fails(
            store, five, push_of(changeset(), after=after, mark=other), LogChanged, **here
        )
    every_push_fails(store, five, push_of(changeset(base=6)), LogBehind, index=0, **here)
    for after, right in ((3, mark), (3, None), (0, ""), (5, None)):
        store.push(five, push_of(changeset(), after=after, mark=right))


def test_a_new_space_is_behind_who_knows_more(store, space):
    """The server lost the space, or the device has the wrong one."""
    with pytest.raises(LogBehind):
        store.push(space, push_of(changeset(), after=1, mark="0" * 16))
    with pytest.raises(LogBehind):
        store.push(space, push_of(changeset(base=1)))
    assert store.push(space, push_of(changeset(), after=0, mark="")).head == 1


# -- Reading a range ---------------------------------------------------------------------------


def test_pulling_visits_every_event_once_whatever_the_page_size(store, five):
    """Each page begins at the end of the last one, and its mark is accepted there."""
    for limit in range(1, 7):
        assert seqs(pull_all(store, five, limit=limit)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("after", range(6))
def test_a_page(store, five, after):
    """At most `limit` events after `after`. `through` is the last one, and `more` whether
    another follows.
    """
    for limit in range(1, 7):
        page = range_after(store, five, after, limit)
        expected = list(range(after + 1, min(after + limit, 5) + 1))
        assert seqs(page.events) == expected
        assert page.through == (expected or [after])[-1]
        assert (page.head, page.more) == (5, page.through < 5)


def test_a_device_that_is_up_to_date_keeps_its_place(store, five):
    """An empty page returns the cursor and the mark of the request."""
    last = range_after(store, five)
    for mark in (last.mark, None):
        page = range_after(store, five, 5, mark=mark)
        assert (page.events, page.through, page.mark, page.more) == ([], 5, last.mark, False)


def test_marks_are_those_of_the_entries(store, five):
    """A mark is the first 16 hex digits of the leaf hash at `through`, or empty at 0."""
    entries = list(store.entries(five, through=5))
    for entry in entries:
        assert range_after(store, five, limit=entry.seq).mark == entry.mark
        assert range_after(store, five, entry.seq, mark=entry.mark).log
    assert len({entry.mark for entry in entries}) == 5
    assert range_after(store, five, 0, mark="").through == 5


def test_a_cursor_of_another_log_is_refused(store, five):
    """Beyond the head: log-behind, with any mark. With another mark: log-changed. A missing mark
    is accepted.
    """
    log = range_after(store, five).log
    for mark in (None, "", "0" * 16):
        with pytest.raises(LogBehind) as refused:
            range_after(store, five, 6, mark=mark)
        assert refused.value.extra == {"log": log, "head": 5}
    for after in range(6):
        with pytest.raises(LogChanged) as refused:
            range_after(store, five, after, mark="0" * 16)
        assert refused.value.extra == {"log": log, "head": 5}
    with pytest.raises(LogChanged):
        range_after(store, five, 3, mark="")


def test_the_log_keeps_its_id(store, five):
    """Every answer has the same log id. Only a command changes it, after a fork of history."""
    logs = {range_after(store, five, after, limit).log for after in range(6) for limit in (1, 9)}
    logs |= {store.push(five, push_of(changeset())).log, store.push(five, push_of()).log}
    assert len(logs) == 1


def test_an_unknown_space_is_named_as_such(store, space):
    """An empty answer would look like a log that has lost all its events."""
    for wanted in (None, [], ["tasks"]):
        with pytest.raises(UnknownSpace):
            range_after(store, space, collections=wanted)


# -- Filter and short form ---------------------------------------------------------------------

COLLECTIONS = [{"t"}, {"n"}, {"t", "n"}, {"t"}, {"x"}]  # of the five events
WANTED = [
    list(chosen)
    for size in range(4)
    for chosen in itertools.combinations(["t", "n", "never"], size)
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_a_filter_leaves_out_what_touches_none_of_them(store, five, wanted):
    """An event that touches a filtered collection comes whole. `through` moves over the others
    up to the head, so each is read once.
    """
    expected = [n for n, touched in enumerate(COLLECTIONS, 1) if touched & set(wanted)]
    whole = dict(enumerate(pull_all(store, five), 1))
    for limit in (1, 2, 3, 6):
        found = pull_all(store, five, limit=limit, collections=wanted)
        assert found == [whole[n] for n in expected]

        after, mark = 0, ""
        for _ in range(6):
            page = range_after(store, five, after, limit, mark=mark, collections=wanted)
            assert len(page.events) <= limit
            assert page.through == 5 or page.through >= max([after + 1, *seqs(page.events)])
            after, mark = page.through, page.mark
        assert (after, page.more) == (5, False)
        assert mark == range_after(store, five).mark


def test_a_device_gets_its_own_in_the_short_form(store, five):
    """The device's own changesets have `ids` instead of `ops`, refused ones too. Other
    changesets come whole. A filter keeps this rule.
    """
    whole = pull_all(store, five)
    devices = [json.loads(event)["device"] for event in whole]
    for device in (A, B, C):
        expected = [
            short_form(event) if by == device else event
            for event, by in zip(whole, devices, strict=True)
        ]
        for limit in (1, 9):
            assert pull_all(store, five, limit=limit, short_for_device=device) == expected
        assert pull_all(store, five, short_for_device=device, collections=["n"]) == expected[1:3]

    third = json.loads(pull_all(store, five, short_for_device=A)[2])
    assert "ops" not in third
    assert third["ids"] == {"t": {"7": json.loads(whole[2])["ops"][0]["id"]}}
    fourth = json.loads(pull_all(store, five, short_for_device=B)[3])
    assert "ops" not in fourth
    assert fourth["refusal"]["code"] == "stale"


# -- Entries -----------------------------------------------------------------------------------


def test_entries_are_a_stretch_of_the_log(store, five):
    """Returns the entries with `after < seq <= through`, in order."""
    for after, through in itertools.product(range(6), range(6)):
        found = [entry.seq for entry in store.entries(five, after=after, through=through)]
        assert found == list(range(after + 1, through + 1))


def test_entries_commit_to_the_bytes_that_readers_get(store, five):
    """Each entry has its own random salt, the hash of its operations, and the columns for
    lookups.
    """
    entries = list(store.entries(five, through=5))
    assert [entry.state for entry in entries] == pull_all(store, five)
    assert len({entry.salt for entry in entries}) == 5
    for entry in entries:
        event = json.loads(entry.state)
        operations = [bytes(op) for op in msgspec.json.decode(entry.state, type=Ops).ops]
        assert entry.ops_hash == proofs.ops_hash(entry.salt, operations)
        assert len(entry.salt) == 32
        assert (entry.kind, entry.event_id) == ("changeset", event["id"])
        assert entry.device == event["device"]
        assert sorted(entry.collections) == sorted(COLLECTIONS[entry.seq - 1])


class Ops(msgspec.Struct):
    ops: list[msgspec.Raw]


def test_every_text_that_may_come_in_can_be_kept(store, space):
    """This holds for ids, names of fields, and values. (An id with NUL is refused earlier:
    databases cannot have it in a key.)
    """
    odd = "\u00e9\U0001f600\ufffe\x01\x7f\n/%'\"\\\\{}"
    named = {"op": "put", "collection": "t", "local_id": odd, "fields": NASTY}
    sent = changeset(put(odd, "t", **{odd: odd}, **NASTY), named, counter=1)
    [answer] = store.push(space, push_of(sent, wants_records=True)).verdicts
    [event] = map(json.loads, pull_all(store, space))
    assert event["ops"][0] == sent["ops"][0]
    assert event["ops"][1] == {**named, "id": answer.ids["t"][odd]}
    assert [record.id for record in answer.records] == [odd, answer.ids["t"][odd]]
    with pytest.raises(InvalidRequest):
        push_of(changeset(put("\0")))


@pytest.mark.parametrize("collections", [None, ["tasks"]])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "more", "page_max"),
    [(3_000_000, {}, 12_000_000), (3_000, {"bytes_max": 8_000}, 12_000)],
)
def test_a_page_that_grows_too_large_ends_early_and_skips_nothing(
    store, space, collections, after, size, more, page_max
):
    """`through` stays before the first event that is left out, with a filter and with large
    events. The limit is the store's or the request's.
    """
    for n in range(4):
        store.push(space, push_of(changeset(put(str(n), big="x" * size))))
    seen, through = [], after
    for _ in range(10):
        page = store.range_after(space, RangeQuery(through, 500, collections=collections, **more))
        assert sum(map(len, page.events)) < page_max
        seen += [decode_event(state).seq for state in page.events]
        if not page.more:
            break
        assert page.through > through
        through = page.through
    assert seen == list(range(after + 1, 5))


def test_a_refused_push_makes_no_space(store, space):
    """A mistyped name must stay an unknown space."""
    with pytest.raises(LogBehind):
        store.push(space, push_of(changeset(), after=41, mark="0" * 16))
    with pytest.raises(CounterGap):
        store.push(space, push_of(changeset(counter=2)))
    with pytest.raises(UnknownSpace):
        store.range_after(space, RangeQuery(0, 1))
    assert store.push(space, push_of()).head == 0
    assert store.range_after(space, RangeQuery(0, 1)).head == 0
