"""Checks against a schema take a bounded number of steps, and little memory."""

from __future__ import annotations

import resource
import time

import pytest

from foldlog.domain.collections import TOO_MANY_STEPS, Proposal, RecordSchema
from foldlog.domain.errors import LimitExceeded
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from foldlog.domain.pattern_size import pattern_size
from foldlog.domain.schema_steps import StepCounter
from foldlog.domain.step_budget import TooManySteps
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import changeset, push_of, put


def consts(count: int) -> dict:
    return {"anyOf": [{"const": f"v{n}"} for n in range(count)]}


HEAVY = [
    pytest.param({"items": consts(800)}, ["x"] * 50_000, id="anyOf"),
    pytest.param({"items": {"oneOf": consts(700)["anyOf"]}}, ["v1"] * 50_000, id="oneOf"),
    pytest.param({"items": {"enum": [[n] for n in range(2_000)]}}, [[-1]] * 5_000, id="enum"),
    pytest.param({"items": {"multipleOf": 1e-300}}, [1e300] * 50_000, id="multipleOf"),
    pytest.param({"pattern": "a[ab]{400}c"}, "ab" * 100_000, id="pattern"),
    pytest.param({"uniqueItems": True}, [[n] for n in range(100_000)], id="uniqueItems"),
]


@pytest.mark.parametrize(("schema", "value"), HEAVY)
def test_a_check_over_its_budget_does_not_run(schema, value):
    """Elements times branches: the check would take seconds, and its violations gigabytes."""
    schema = RecordSchema(JsonSchema.checked({"properties": {"a": schema}}, LIMITS))
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert schema.violation({"a": value}).reason == TOO_MANY_STEPS
    assert time.process_time() - began < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 * 2**10


def test_a_violation_in_a_large_value_is_found():
    schema = RecordSchema(JsonSchema({"properties": {"a": {"items": {"type": "string"}}}}))
    found = schema.violation({"a": ["x"] * 100_000 + [1]})
    assert (found.path, found.reason) == ("/a/100000", 'does not fit type "string"')


def test_a_push_has_a_budget_too():
    """Each changeset alone is decided, so the device sends fewer at once."""
    store = MemoryStore()
    schema = {"properties": {"a": {"items": consts(90)}}, "anyOf": [True]}
    store.define("s", "tasks", Proposal(JsonSchema.checked(schema, LIMITS)))
    made = [changeset(put(f"r{n}", a=["v80"] * 1_200)) for n in range(15)]
    with pytest.raises(LimitExceeded) as refused:
        store.push("s", push_of(*made))
    assert refused.value.extra["limit"] == "schema_steps_per_push_max"
    for one in made:
        (answer,) = store.push("s", push_of(one)).verdicts
        assert answer.verdict == "stored"


def test_counting_ends_at_the_budget():
    with pytest.raises(TooManySteps):
        StepCounter({"items": consts(100)}).count(["x"] * 100_000, 1_000)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [("^[a-z]{8}-x$", 1), ("[^<>]", 1), ("a[ab]{50}c", 52), ("((a{10}){10}){10}", 1000)],
)
def test_the_size_of_a_pattern(pattern, size):
    assert pattern_size(pattern) == size
