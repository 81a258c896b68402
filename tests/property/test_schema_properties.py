"""For any pushes in any order, the records of a defined collection are valid."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st

from foldlog.domain.collections import Proposal
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from foldlog.domain.merge import Record
from foldlog.infrastructure.memory.store import MemoryStore
from tests.examples import examples
from tests.helpers import A, B, add, changeset, delete, push_of, put

BY_FIELD = {
    "properties": {
        "title": {"type": "string", "maxLength": 2},
        "n": {"type": "integer", "minimum": 0, "maximum": 3},
    },
    "patternProperties": {"^x": {"type": "boolean"}},
    "required": ["title"],
    "additionalProperties": False,
}
JOINED = {**BY_FIELD, "dependentRequired": {"x": ["n"]}, "minProperties": 2}
FREE = {"required": ["n"], "anyOf": [{"required": ["title"]}, {"properties": {"n": {"const": 1}}}]}

values = {
    "title": st.sampled_from(["", "ab", "abc", 1]),
    "n": st.sampled_from([0, 1, 3, -1, 4, 0.5, "1"]),
    "x": st.sampled_from([True, False, None]),
    "y": st.just(1),
}
ids = st.sampled_from("ab")
names = st.sampled_from(["title", "n", "x", "y"])
fields = st.dictionaries(names, st.none(), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen})
)
good = st.fixed_dictionaries(
    {"title": st.sampled_from(["", "ab"])},
    optional={"n": st.sampled_from([0, 1, 3]), "x": st.booleans()},
)


@st.composite
def operations(draw):
    kind = draw(st.sampled_from(["put", "put", "good", "add", "delete"]))
    id = draw(ids)
    if kind == "delete":
        return delete(id)
    if kind == "add":
        return add(id, **{draw(names): draw(st.sampled_from([1, -1, 2, 0.5]))})
    given = draw(good if kind == "good" else fields)
    unset = draw(st.sets(names, max_size=1)) - given.keys()
    return {**put(id, **given), **({"unset": sorted(unset)} if unset else {})}


@st.composite
def sent(draw):
    """A changeset, its device, and how far the base lags."""
    ops = draw(st.lists(operations(), min_size=1, max_size=3))
    minute = draw(st.integers(0, 59))
    members = {"made_at": f"2026-11-23T08:{minute:02}:00Z"}
    return draw(st.sampled_from([A, B])), draw(st.integers(0, 4)), ops, members


histories = st.lists(sent(), min_size=1, max_size=12)


def push(store: MemoryStore, history, check=lambda before: None) -> None:
    for device, lag, ops, members in history:
        head = store._space("s").head if "s" in store._spaces else 0
        before = dict(store._space("s").records) if head else {}
        one = changeset(*ops, base=max(0, head - lag), **members)
        (answer,) = store.push("s", push_of(one, device=device)).verdicts
        event(answer.verdict)
        check(before)


@examples(150)
@given(st.sampled_from([BY_FIELD, JOINED, FREE]), histories)
def test_every_record_is_valid(raw, history):
    """Changesets are judged alone where this is possible, and otherwise with the record."""
    store, schema = MemoryStore(), JsonSchema.checked(raw, LIMITS)
    store.define("s", "tasks", Proposal(schema))

    def check(_):
        for record in store._space("s").records.values():
            assert not record.is_live or schema.fits(record.fields), record

    push(store, history, check)


def faults(schema: JsonSchema, record: Record | None) -> set[tuple]:
    if record is None or not record.is_live or schema.fits(record.fields):
        return set()
    return {fault[:3] for fault in schema.faults(record.fields)}


@examples(150)
@given(st.sampled_from([BY_FIELD, JOINED, FREE]), histories, histories)
def test_invalid_records_get_no_new_violations(raw, history, later):
    """After a definition that was forced onto invalid records."""
    store, schema = MemoryStore(), JsonSchema.checked(raw, LIMITS)
    push(store, history)
    store.define("s", "tasks", Proposal(schema, force=True))

    def check(before):
        for key, record in store._space("s").records.items():
            assert faults(schema, record) <= faults(schema, before.get(key)), record

    push(store, later, check)
