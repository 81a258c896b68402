"""Erasing a record, on every kind of store: the values go, and all proofs stay valid."""

from __future__ import annotations

import msgspec
import pytest

from foldlog.domain import proofs
from foldlog.domain.collections import Proposal
from foldlog.domain.erasure import Selection
from foldlog.domain.errors import IdReused, InvalidRequest, UnknownRecord, UnknownSpace
from foldlog.domain.events import decode_event, restored_entry
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from foldlog.domain.ports import RangeQuery
from tests.helpers import (
    A,
    B,
    add,
    all_conflicts,
    all_records,
    changeset,
    delete,
    new_id,
    pull_all,
    push_of,
    put,
)

R = ("tasks", "r")


def erase(store, space, *keys, reason="asked to"):
    return store.erase(space, keys or (R,), reason=reason)


def events_of(store, space):
    return [msgspec.json.decode(event) for event in pull_all(store, space)]


def leaves(store, space, through):
    return [
        proofs.leaf_hash(proofs.leaf_of(proofs.header_of(e.state), e.ops_hash))
        for e in store.entries(space, through=through)
    ]


def head_of(store, space):
    return store.range_after(space, RangeQuery(0, 1)).head


def record_of(store, space, key=R):
    page = store.record(space, key, at_least=head_of(store, space))
    return msgspec.json.decode(page.records[0])


def test_the_values_leave_the_log_and_nothing_else_does(store, space):
    """The event keeps everything except the operations on that record."""
    store.push(space, push_of(changeset(put("r", name="secret"), put("s", name="kept"), base=0)))
    before = next(iter(store.entries(space, through=1)))

    [erased] = erase(store, space)

    assert (erased.seq, erased.events) == (2, 1)
    [after, note] = store.entries(space, through=2)
    event = msgspec.json.decode(after.state)
    values = msgspec.json.encode(put("r", name="secret"))
    commitment = proofs.commitment(before.salt, 0, values)
    assert event["ops"] == [
        {"op": "put", "collection": "tasks", "id": "r", "erased": commitment.hex()},
        put("s", name="kept"),
    ]
    assert proofs.header_of(after.state) == proofs.header_of(before.state)
    assert (after.ops_hash, after.mark) == (before.ops_hash, before.mark)
    assert before.salt not in after.salt
    body = msgspec.json.decode(note.state)["body"]
    assert body == {"collection": "tasks", "id": "r", "reason": "asked to"}


def test_every_leaf_stays_and_opens(store, space):
    """Old checkpoints stay valid, and the remaining operations still match their commitments."""
    for n in range(4):
        store.push(space, push_of(changeset(put("r", n=n), put("s", n=n), add("t", n=1), base=n)))
    before = leaves(store, space, 4)
    erase(store, space)
    erase(store, space, ("tasks", "t"))
    assert leaves(store, space, 4) == before
    for entry in store.entries(space, through=6):
        assert restored_entry(entry.state, entry.salt) == entry


def test_the_record_is_a_tombstone_and_its_conflicts_are_gone(store, space):
    """Conflicts of other records stay, in their order."""
    store.push(space, push_of(changeset(put("r", x=1), put("s", x=1), put("t", x=1))))
    store.push(space, push_of(changeset(put("r", x=2), put("s", x=2), put("t", x=2)), device=B))
    assert len(all_conflicts(store, space, at_least=2)) == 3

    erase(store, space, ("tasks", "s"))

    assert [c["id"] for c in all_conflicts(store, space, at_least=3)] == ["r", "t"]
    record = record_of(store, space, ("tasks", "s"))
    assert record["fields"] == {} and record["is_deleted"]
    assert (record["seq"], record["created_seq"]) == (3, 3)
    [live_r, live_t] = all_records(store, space, at_least=3)
    assert (live_r["id"], live_t["id"]) == ("r", "t")


def test_a_refused_changeset_is_erased_too(store, space):
    """The log holds the values of a refused changeset as well."""
    store.push(space, push_of(changeset(put("r", x=1))))
    stale = changeset({**put("r", x="secret"), "expect": {"x": "hidden"}})
    assert store.push(space, push_of(stale)).verdicts[0].verdict == "refused"
    assert erase(store, space)[0].events == 2
    assert b"secret" not in b"".join(pull_all(store, space))
    assert b"hidden" not in b"".join(pull_all(store, space))


def test_erasing_again_is_answered_as_done(store, space):
    store.push(space, push_of(changeset()))
    [first] = erase(store, space)
    [second] = erase(store, space)
    assert (second.seq, second.events) == (first.seq, 0)
    assert head_of(store, space) == 2


def test_what_is_made_anew_can_be_erased_anew(store, space):
    store.push(space, push_of(changeset(put("r", x="first"))))
    erase(store, space)
    store.push(space, push_of(changeset(put("r", x="second"), base=2)))
    assert record_of(store, space)["fields"] == {"x": "second"}
    [again] = erase(store, space)
    assert (again.seq, again.events) == (4, 1)
    assert record_of(store, space)["is_deleted"]


def test_what_has_not_seen_the_erasure_is_stored_erased(store, space):
    """A late changeset is acknowledged as usual, and its values stay out of the log."""
    store.push(space, push_of(changeset(put("r", x=1), counter=1)))
    erase(store, space)
    late = changeset(put("r", x="secret"), put("s", x="kept"), base=1, counter=2)

    receipt = store.push(space, push_of(late))

    assert (receipt.verdicts[0].verdict, receipt.verdicts[0].seq) == ("stored", 3)
    event = events_of(store, space)[2]
    assert "erased" in event["ops"][0] and event["ops"][1]["fields"] == {"x": "kept"}
    assert record_of(store, space)["is_deleted"]
    assert record_of(store, space, ("tasks", "s"))["fields"] == {"x": "kept"}
    assert not all_conflicts(store, space, at_least=3)
    for entry in store.entries(space, through=3):
        assert restored_entry(entry.state, entry.salt) == entry


def test_also_on_the_quick_path(store, space):
    """The second of two pushes is decided on the cached state of the space."""
    store.push(space, push_of(changeset(put("r", x=1), counter=1)))
    erase(store, space)
    for counter in (2, 3, 4):
        ops = put("r", x="secret"), put("s", x="kept")
        store.push(space, push_of(changeset(*ops, base=1, counter=counter)))
    assert b"secret" not in b"".join(pull_all(store, space))
    # a changeset made after the erasure is stored as it is
    store.push(space, push_of(changeset(put("r", x="anew"), base=5, counter=5)))
    assert record_of(store, space)["fields"] == {"x": "anew"}


def test_what_its_schema_refuses_is_stored_without_the_values_too(store, space):
    """The reason of the refusal is free of values, and a repeat gets the same answer. The other
    operations are stored as sent.
    """
    schema = {"properties": {"n": {"type": "integer"}}}
    store.define(space, "tasks", Proposal(JsonSchema.checked(schema, LIMITS)))
    store.push(space, push_of(changeset(put("r", n=1), put("s", n=1))))
    erase(store, space)
    guarded = {**put("r", n="secret"), "expect": {"n": "secret"}}
    late = changeset(guarded, put("s", n=2), base=2)
    plain = changeset(put("r", n="secret"), put("s", n=2), base=2)
    for sent in (late, plain):
        first = store.push(space, push_of(sent)).verdicts[0]
        assert first.verdict == "refused" and "secret" not in first.refusal.detail
        again = store.push(space, push_of(sent)).verdicts[0]
        assert again.duplicate and again.refusal == first.refusal
        event = events_of(store, space)[first.seq - 1]
        assert [set(op) for op in event["ops"]] == [
            {"op", "collection", "id", "erased"},
            {"op", "collection", "id", "fields"},
        ]
    assert b"secret" not in b"".join(pull_all(store, space))
    assert record_of(store, space, ("tasks", "s"))["fields"] == {"n": 1}
    assert record_of(store, space)["is_deleted"]


def test_a_duplicate_is_compared_by_its_id_alone(store, space):
    """The log keeps no digest of the erased content. A repeat gets its first answer."""
    sent = changeset({"op": "put", "collection": "tasks", "local_id": "7", "fields": {"x": 1}})
    first = store.push(space, push_of(sent)).verdicts[0]
    id = first.ids["tasks"]["7"]
    erase(store, space, ("tasks", id))
    again = store.push(space, push_of(sent)).verdicts[0]
    assert again.duplicate and (again.seq, again.ids) == (first.seq, {"tasks": {"7": id}})
    other = store.push(space, push_of({**sent, "ops": [delete("r")]})).verdicts[0]
    assert other.duplicate and other.ids is msgspec.UNSET
    assert store.local_ids(space, A, limit=1, cursor=None, at_least=2).ids == {}


def test_others_are_compared_as_ever(store, space):
    sent = changeset(put("s", x=1))
    store.push(space, push_of(sent, changeset(put("r", x=1))))
    erase(store, space)
    with pytest.raises(IdReused):
        store.push(space, push_of({**sent, "ops": [put("s", x=2)]}))


def test_a_device_is_told_which_of_its_operations_are_erased(store, space):
    """The short form omits the operations, which the device has itself."""
    store.push(space, push_of(changeset(put("s", x=1), put("r", x=1), counter=1)))
    erase(store, space)
    page = store.range_after(space, RangeQuery(0, 10, short_for_device=A))
    assert decode_event(page.events[0]).erased == [1]
    assert decode_event(page.events[0]).ops == []


def test_a_guard_sees_the_erasure(store, space):
    store.push(space, push_of(changeset(put("r", x=1), put("s", x=1))))
    erase(store, space)
    refused = changeset(put("r", x=2), base=1, guard="unchanged")
    fine = changeset(put("s", x=2), base=1, guard="unchanged")
    verdicts = store.push(space, push_of(refused, fine)).verdicts
    assert [v.verdict for v in verdicts] == ["refused", "stored"]
    expects = changeset({**put("r", x=3), "expect": {"x": 1}}, base=2)
    assert store.push(space, push_of(expects)).verdicts[0].verdict == "refused"


def test_finding_by_a_value(store, space):
    """Finds every record that ever had the value, including overwritten, lost and refused ones."""
    store.push(space, push_of(changeset(put("now", mail="x"), put("once", mail="x", n=1))))
    store.push(space, push_of(changeset(put("once", mail="y"), put("other", mail="z"), base=1)))
    store.push(space, push_of(changeset({**put("tried", mail="x"), "if_seq": 9})))
    store.push(space, push_of(changeset(put("now", "users", mail="x"), put("typed", mail=1))))
    found = store.find_erasable(space, Selection(collection="tasks", where={"mail": "x"}))
    assert [(one.id, one.events) for one in found] == [("now", 1), ("once", 2), ("tried", 1)]
    both = Selection(collection="tasks", where={"mail": "x", "n": 1.0})
    assert [one.id for one in store.find_erasable(space, both)] == ["once"]
    truth = Selection(collection="tasks", where={"mail": True})
    assert store.find_erasable(space, truth) == []


def test_finding_by_a_value_that_only_a_guard_names(store, space):
    """A value may stand in the log in `expect` alone: a device named it, and no `fields` have it.
    Erasing by the value removes these operations too, stored and refused."""
    store.push(space, push_of(changeset(put("r", n=1), put("s", n=1), delete("t"))))
    for op in (
        {**put("r", n=2), "expect": {"mail": "secret", "n": 1}},
        {**delete("s"), "expect": {"n": 1, "mail": "secret"}},
        {**put("q"), "expect": {"mail": "other"}},
        {**put("m", mail="secret")},
        {**put("r", "notes"), "expect": {"mail": "secret"}},
    ):
        store.push(space, push_of(changeset(op, base=1)))
    wanted = Selection(collection="tasks", where={"mail": "secret"})
    found = store.find_erasable(space, wanted)
    assert [(one.id, one.events) for one in found] == [("m", 1), ("r", 2), ("s", 2)]
    both = Selection(collection="tasks", where={"mail": "secret", "n": 1})
    assert [one.id for one in store.find_erasable(space, both)] == ["r", "s"]

    erase(store, space, *(one.key for one in found))

    left = [state for state in pull_all(store, space) if b"secret" in state]
    assert [msgspec.json.decode(state)["ops"][0]["collection"] for state in left] == ["notes"]
    assert store.find_erasable(space, wanted) == []


def test_several_at_once(store, space):
    store.push(space, push_of(changeset(put("a", x=1), put("b", x=1), put("c", x=1))))
    erased = erase(store, space, ("tasks", "b"), ("tasks", "a"))
    assert [(e.id, e.seq, e.events) for e in erased] == [("a", 2, 1), ("b", 3, 1)]
    assert [r["id"] for r in all_records(store, space, at_least=3)] == ["c"]


def test_nothing_is_erased_if_one_is_unknown(store, space):
    store.push(space, push_of(changeset()))
    with pytest.raises(UnknownRecord):
        erase(store, space, R, ("tasks", "never"))
    with pytest.raises(UnknownRecord):
        store.find_erasable(space, Selection(keys=(("tasks", "never"),)))
    with pytest.raises(UnknownSpace):
        erase(store, f"no-{space}")
    assert head_of(store, space) == 1


@pytest.mark.parametrize("reason", ["", " ", "x" * 501, "a\0b", "\ud800"])
def test_a_reason_is_readable_text(store, space, reason):
    """The log keeps the reason for ever, so its text is checked."""
    store.push(space, push_of(changeset()))
    with pytest.raises(InvalidRequest):
        erase(store, space, reason=reason)


@pytest.mark.parametrize(
    "wanted",
    [Selection(), Selection(collection="tasks"), Selection(where={"x": 1})],
    ids=["nothing", "all of a collection", "of no collection"],
)
def test_it_must_be_said_what(store, space, wanted):
    store.push(space, push_of(changeset()))
    with pytest.raises(InvalidRequest):
        store.find_erasable(space, wanted)


def test_values_with_every_character(store, space):
    """The database searches the bytes of values that users write."""
    odd = {
        '"ops":[': ',"erased":"' + "0" * 64,
        "nul": "\0\x01\\u0000",
        "e": "\U0001f600é",
        "n": 1e300,
    }
    id = 'r"\\u0041/é,"ops":['
    store.push(space, push_of(changeset(put(id, **odd), put("s", **odd), delete("s"))))
    erase(store, space, ("tasks", id))
    [entry] = store.entries(space, through=1)
    assert restored_entry(entry.state, entry.salt) == entry
    assert decode_event(entry.state).ops[1].fields == odd
    erase(store, space, ("tasks", "s"))
    [entry] = store.entries(space, through=1)
    assert restored_entry(entry.state, entry.salt) == entry


def test_who_waits_is_told(store, space):
    store.push(space, push_of(changeset()))
    told = []
    store.watch(space, lambda: told.append(1))
    erase(store, space)
    assert told


def test_progress_is_told(store, space):
    store.push(space, push_of(*(changeset() for _ in range(3))))
    told = []
    store.erase(space, [R], reason=new_id(), report=lambda done, of: told.append((done, of)))
    assert told[-1] == (3, 3)
