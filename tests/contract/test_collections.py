"""Collections with a schema, and the changesets to them, on every kind of store."""

from __future__ import annotations

import msgspec
import pytest

from foldlog.domain.collections import Proposal
from foldlog.domain.errors import (
    LimitExceeded,
    SchemaNotAdditive,
    SchemaViolated,
    UnknownCollection,
    UnknownSpace,
    VersionConflict,
)
from foldlog.domain.events import decode_event
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from foldlog.domain.ports import RangeQuery
from tests.helpers import A, B, add, all_records, changeset, delete, pull_all, push_of, put

TASKS = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 10},
        "done": {"type": "boolean"},
        "left": {"type": "integer", "minimum": 0},
    },
    "required": ["title"],
    "additionalProperties": False,
}
#: a schema about several fields together
RANGE = {"dependentRequired": {"until": ["since"]}, "properties": {"since": {"minimum": 0}}}


def wanted(schema, **members) -> Proposal:
    return Proposal(JsonSchema.checked(schema, LIMITS), **members)


@pytest.fixture
def define(store, space):
    def define(schema=TASKS, collection="tasks", **members):
        return store.define(space, collection, wanted(schema, **members))

    return define


@pytest.fixture
def told(store, space):
    """Pushes one changeset. Returns `stored`, or the detail of its refusal."""

    def push(*ops, device=A, **members):
        (answer,) = store.push(space, push_of(changeset(*ops, **members), device=device)).verdicts
        assert (answer.verdict == "stored") is (answer.refusal is msgspec.UNSET)
        if answer.verdict == "stored":
            return "stored"
        assert answer.refusal.code == "schema"
        return answer.refusal.detail

    return push


def caught_up(store, space) -> list[dict]:
    head = store.range_after(space, RangeQuery(0, 1)).head
    return [r["fields"] for r in all_records(store, space, at_least=head)]


# -- Defining ----------------------------------------------------------------------------------


def test_a_definition_is_an_event_that_everybody_gets(store, space, define):
    """A device that filters by other collections gets the event too."""
    outcome = define(by="ada")
    assert (outcome.version, outcome.seq, outcome.reasons) == (1, 1, [])

    (state,) = pull_all(store, space, collections=["others"])
    event = decode_event(state)
    assert (event.seq, event.kind) == (1, "collection-defined")
    assert event.body == {"collection": "tasks", "version": 1, "schema": TASKS, "by": "ada"}
    (version,) = store.collections(space)
    assert (version.collection, version.version, version.seq, version.by) == ("tasks", 1, 1, "ada")
    assert version.defined_at == event.received_at


def test_versions_are_counted_and_kept(store, space, define):
    define()
    assert define({**TASKS, "required": []}).version == 2
    assert define({}, "notes").version == 1

    assert [(v.collection, v.version) for v in store.collections(space)] == [
        ("notes", 1),
        ("tasks", 2),
    ]
    last, versions = store.collection(space, "tasks")
    assert (last.version, last.schema["required"]) == (2, [])
    assert [version.version for version in versions] == [1, 2]
    first, _ = store.collection(space, "tasks", 1)
    assert (first.schema, first.seq) == (TASKS, 1)


def test_the_same_again_changes_nothing(store, space, define):
    """A retry, or a deployment that defines at each start, adds an event only for a new schema."""
    first = define(if_version=0)
    again = define(dict(reversed(TASKS.items())), if_version=0)
    assert (again.version, again.seq) == (first.version, first.seq) == (1, 1)
    assert store.range_after(space, RangeQuery(0, 10)).head == 1


def test_what_is_not_there_is_told(store, space, define):
    with pytest.raises(UnknownSpace):
        store.collections(space)
    with pytest.raises(UnknownSpace):
        store.collection(space, "tasks")
    define()
    for collection, version in (("notes", None), ("tasks", 2)):
        with pytest.raises(UnknownCollection):
            store.collection(space, collection, version)


def test_a_version_that_is_not_the_expected_one(define):
    define()
    with pytest.raises(VersionConflict) as refused:
        define({}, if_version=0)
    assert refused.value.extra == {"version": 1}
    assert define({}, if_version=1).version == 2


def test_what_is_not_additive_is_refused_and_stores_nothing(store, space, define):
    define()
    narrower = {**TASKS, "required": ["title", "done"]}
    with pytest.raises(SchemaNotAdditive) as refused:
        define(narrower)
    assert refused.value.extra["version"] == 1
    assert [reason["path"] for reason in refused.value.extra["reasons"]] == ["/required"]
    assert store.range_after(space, RangeQuery(0, 10)).head == 1


def test_a_forced_one_tells_what_does_not_fit(store, space, define, told):
    """The answer lists the records that violate the schema, and the event says `forced`."""
    define()
    assert told(put("a", title="a"), put("b", title="b", done=True)) == "stored"
    caught_up(store, space)
    outcome = define({**TASKS, "required": ["title", "done"]}, force=True)
    assert (outcome.version, outcome.seq) == (2, 3)
    assert [reason.path for reason in outcome.reasons] == ["/required"]
    assert (outcome.check.checked, outcome.check.violating) == (2, 1)
    assert [(f.id, f.path, f.reason) for f in outcome.check.first] == [("a", "", "lacks done")]
    assert decode_event(pull_all(store, space)[2]).body["forced"] is True


def test_the_first_schema_must_fit_what_is_stored(store, space, define, told):
    """The check ignores deleted records and other collections."""
    told(put("a", title="a"), put("b", title=5), put("c", title=6), put("d", "notes", title=7))
    told(delete("c"), base=1)
    caught_up(store, space)
    with pytest.raises(SchemaViolated) as refused:
        define()
    found = {"id": "b", "path": "/title", "reason": 'does not fit type "string"'}
    assert refused.value.extra == {
        "checked": 2,
        "violating": 1,
        "first": [found],
        "is_complete": True,
    }
    told(put("b", title="b"), base=2)
    caught_up(store, space)
    assert define().version == 1


def test_a_dry_run_stores_nothing_and_tells_all(store, space, define, told):
    """A dry run reports everything, and creates neither an event nor a space."""
    assert define(is_dry_run=True).seq is None
    with pytest.raises(UnknownSpace):
        store.collections(space)
    told(*(put(str(n), title=n) for n in range(30)))
    caught_up(store, space)
    outcome = define(is_dry_run=True)
    assert (outcome.version, outcome.seq) == (1, None)
    assert (outcome.check.checked, outcome.check.violating) == (30, 30)
    assert len(outcome.check.first) == 10
    assert store.collections(space) == []


def test_collections_have_a_limit(store, space, define):
    for n in range(LIMITS.collections_per_space_max):
        define({}, f"c{n}")
    with pytest.raises(LimitExceeded):
        define({}, "one-more")
    assert define({"title": "another"}, "c0").version == 2


# -- Changesets --------------------------------------------------------------------------------


def test_other_collections_stay_free(define, told):
    define()
    assert told(put("a", "notes", anything=[1])) == "stored"


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (put(title="fine"), "stored"),
        (put(title="fine", left=0, done=True), "stored"),
        (put(title=5), 'tasks/r at /title: does not fit type "string"'),
        (put(title="much too long"), "tasks/r at /title: does not fit maxLength 10"),
        (put(title="", secret=1), "tasks/r: has a field that the schema does not allow"),
        (put(done=True), "tasks/r: lacks title"),
        (put(), "tasks/r: lacks title"),
        (add(left=1), "tasks/r: lacks title"),
        (delete(), "stored"),
    ],
)
def test_a_new_record(define, told, op, why):
    define()
    assert told(op) == why


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (put(done=True), "stored"),
        (put(done=1), 'tasks/r at /done: does not fit type "boolean"'),
        (put(secret=1), "tasks/r: has a field that the schema does not allow"),
        ({**put(done=True), "unset": ["left"]}, "stored"),
        ({**put(), "unset": ["title"]}, "tasks/r: lacks title"),
        (add(left=-2), "stored"),
        (add(left=-3), "tasks/r at /left: does not fit minimum 0"),
        (add(left=0.5), 'tasks/r at /left: does not fit type "integer"'),
        (add(secret=1), "tasks/r: has a field that the schema does not allow"),
        (delete(), "stored"),
    ],
)
def test_a_record_that_is_there(store, space, define, told, op, why):
    """A `put` may write one field of a stored record. A sum is checked by its result."""
    define()
    assert told(put(title="one", left=2)) == "stored"
    assert told(op, base=2) == why
    fields = caught_up(store, space)
    assert (fields == [{"title": "one", "left": 2}]) is (why != "stored")


def test_a_refused_changeset_is_stored_and_holds_up_nobody(store, space, define):
    """It uses a seq and its counter. Its whole content is ignored. A repeat gets the same
    answer, with the current records.
    """
    define()
    store.push(space, push_of(changeset(put(title="one"), counter=1), device=A))
    bad = changeset(put(title="two"), put("b", title=2), put("c", "notes", n=1), counter=2, base=2)
    good = changeset(put(done=True), counter=3, base=2)
    first, second = store.push(space, push_of(bad, good, device=A)).verdicts
    assert [first.verdict, second.verdict] == ["refused", "stored"]
    assert [record.fields for record in first.records] == [{"title": "one"}]
    (again,) = store.push(space, push_of(bad, device=A)).verdicts
    assert (again.duplicate, again.seq, again.refusal) == (True, first.seq, first.refusal)
    assert caught_up(store, space) == [{"title": "one", "done": True}]


def test_an_operation_may_make_good_what_another_one_lacks(define, told):
    """The record is checked after the whole changeset."""
    define()
    assert told(put(done=True), put(title="late")) == "stored"
    assert told({**put(), "unset": ["title"]}, put(title="anew"), base=2) == "stored"
    assert told(delete(), put(done=True), base=3) == "tasks/r: lacks title"


def test_a_value_is_judged_even_if_it_would_lose(define, told):
    """A losing value is checked too, because the ledger offers to restore it."""
    define()
    told(put(title="one"), device=A)
    old = "2020-11-23T09:00:00Z"
    assert "does not fit type" in told(put(title=5), device=B, made_at=old)
    assert told(put(title="lost"), device=B, made_at=old) == "stored"


def test_what_comes_too_late_for_a_deleted_record_is_stored(store, space, define, told):
    """It leaves the record as it is, so it breaks no schema, and goes to the ledger."""
    define()
    told(put(title="one"), device=A)
    told(delete(), base=2, device=A)
    assert told(put(done=True), base=2, device=B) == "stored"
    assert told(put(done=True), base=3, device=B) == "tasks/r: lacks title"


def test_two_that_are_fine_alone_may_not_be_together(define, told):
    """Each device saw a record that fits its own change. The second changeset is refused."""
    define(RANGE)
    assert told(put(since=1, until=2), device=A) == "stored"
    assert told({**put(), "unset": ["until"]}, base=2, device=A) == "stored"
    assert told({**put(), "unset": ["since"]}, base=3, device=A) == "stored"
    assert told(put(until=3), base=2, device=B) == "tasks/r: lacks since"


def test_a_changeset_answers_for_what_it_breaks(store, space, define, told):
    """A violation from before a forced definition is ignored."""
    told(put("a", title=5, left=-1), put("b", title="b"))
    caught_up(store, space)
    define(force=True)
    assert told(put("a", done=True), base=1) == "stored"
    assert told(put("a", title="a"), base=1) == "stored"
    assert told(put("a", left=-2), base=1) == "tasks/a at /left: does not fit minimum 0"
    assert told(add("a", left=-1), base=1) == "stored"
    assert told({**put("a"), "unset": ["title"]}, base=1) == "tasks/a: lacks title"


def test_pushes_are_judged_by_the_schema_that_comes_before_them(define, told):
    """A process that has cached the earlier state uses the new schema too."""
    assert told(put("a", title=1)) == "stored"
    assert told(put("a", title=2), base=1) == "stored"
    define({"properties": {"title": {"type": "integer"}}})
    assert told(put("a", title=3), base=3) == "stored"
    assert "does not fit type" in told(put("a", title="4"), base=4)
    define({"properties": {"title": {"type": ["integer", "string"]}}})
    assert told(put("a", title="5"), base=5) == "stored"
