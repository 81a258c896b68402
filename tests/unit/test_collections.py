"""The bytes of a definition, and operations that are valid on any record."""

from __future__ import annotations

import msgspec
import pytest

from foldlog.domain.changesets import Operation
from foldlog.domain.collections import (
    Body,
    RecordSchema,
    definition_entry,
    definition_of,
    needs_records,
)
from foldlog.domain.events import Envelope, decode_event, restored_entry
from foldlog.domain.lookups import keys_to_load
from tests.helpers import add, changeset, delete, push_of, put

SALT = bytes(range(32))
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "n": {"minimum": 0}},
    "required": ["title"],
    "additionalProperties": False,
}
# Golden events, like those of test_stored_form.py: keep them as they are.
DEFINED = (
    b'{"seq":3,"kind":"collection-defined","id":"0198a3c2-0000-4000-8000-000000000001",'
    b'"received_at":"2026-11-23T09:00:02.481Z","body":{"collection":"tasks","version":1,'
    b'"schema":{"type":"object","properties":{"title":{"type":"string"},"n":{"minimum":0}},'
    b'"required":["title"],"additionalProperties":false}}}'
)
FORCED = (
    b'{"seq":4,"kind":"collection-defined","id":"0198a3c2-0000-4000-8000-000000000001",'
    b'"received_at":"2026-11-23T09:00:02.481Z","body":{"collection":"tasks","version":2,'
    b'"schema":{},"by":"ada","forced":true}}'
)


def entry(seq: int, body: Body):
    return definition_entry(
        Envelope(seq, "0198a3c2-0000-4000-8000-000000000001", 1_795_424_402_481, SALT), body
    )


GOLDEN = [
    pytest.param(3, Body("tasks", 1, SCHEMA), DEFINED, id="defined"),
    pytest.param(4, Body("tasks", 2, {}, "ada", forced=True), FORCED, id="forced"),
]


@pytest.mark.parametrize(("seq", "body", "state"), GOLDEN)
def test_its_bytes_are_as_stored_for_ever(seq, body, state):
    assert entry(seq, body).state == state
    assert restored_entry(state, SALT) == entry(seq, body)


@pytest.mark.parametrize(("seq", "body", "state"), GOLDEN)
def test_it_is_still_read(seq, body, state):
    definition = definition_of(decode_event(state))
    assert (definition.collection, definition.version) == (body.collection, body.version)
    assert (definition.schema, definition.by) == (body.schema, body.by)
    assert (definition.seq, definition.forced) == (seq, body.forced)
    assert definition.defined_at == "2026-11-23T09:00:02.481Z"


def operation(json) -> Operation:
    return msgspec.convert(json, Operation)


@pytest.mark.parametrize(
    ("op", "is_clear"),
    [
        (put(title="a"), True),
        (put(title="a", n=1), True),
        ({**put(title="a"), "unset": ["n"]}, True),
        (delete(), True),
        (put(n=1), False),  # valid only if the record has a title
        (put(title=1), False),  # a refusal is always decided by the current schema
        (put(title="a", n=-1), False),
        (put(title="a", other=1), False),
        ({**put(n=1), "unset": ["title"]}, False),
        (add(n=1), False),
    ],
)
def test_operations_that_are_judged_without_the_record(op, is_clear):
    schemas = {"tasks": RecordSchema.of(SCHEMA)}
    assert needs_records([operation(op)], schemas) is not is_clear
    assert not needs_records([operation({**op, "collection": "others"})], schemas)


@pytest.mark.parametrize(
    "schema", [{"maxProperties": 2}, {"anyOf": [{}]}, {"dependentRequired": {}}, {"not": False}]
)
def test_a_schema_that_combines_fields_needs_the_record(schema):
    assert needs_records([operation(put(title="a"))], {"tasks": RecordSchema.of(schema)})


def test_all_records_of_a_changeset_that_needs_one_are_loaded():
    """If the changeset is refused, the answer shows all records that it touched."""
    schemas = {"tasks": RecordSchema.of(SCHEMA)}
    unclear = changeset(put("a", n=1), put("b", "others"), put("c", title="c"))
    clear = changeset(put("d", title="d"), put("e", "others"))
    keys = {("tasks", "a"), ("others", "b"), ("tasks", "c")}
    assert keys_to_load([push_of(unclear, clear)], schemas) == keys
    assert keys_to_load([push_of(unclear, clear)], {}) == set()
