"""The steps that are counted for a check bound its time and memory, whatever the schema and value.

`python -m tests.property.test_schema_budget SECONDS [SEED]` searches for the check that takes the
longest within the budget of a changeset, and prints the worst ones. Only this command measures
time: the tests assert on steps and memory.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foldlog.domain.collections import TOO_MANY_STEPS, RecordSchema
from foldlog.domain.errors import FoldlogError
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from foldlog.domain.schema_steps import StepCounter
from foldlog.domain.step_budget import TooManySteps

NUMBERS = [0, 7, 2**31, 2**53 - 1, 0.5, 1.1, 1e308, 5e-324, 1e-300]
STRINGS = ["", "v1", "abab" * 5, "x" * 300, "é語", "2026-01-01T00:00:00Z", "a@b.cd"]
PATTERNS = ["^a+$", "[ab]*a[ab]{12}c", "a[ab]{40}c", "^.{3,9}$", ".*é.{20}z", "(a?){30}b"]
FORMATS = ["date-time", "email", "uuid", "uri", "hostname", "ipv6"]
NAMES = ["a", "b", "c", *(f"p{n}" for n in range(97))]
MEMORY_MAX = 64 * 2**20


class Maker:
    """Makes schemas and values of many elements, branches and levels."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def scalar(self) -> Any:
        return self.random.choice([*NUMBERS, *STRINGS, None, True])

    def leaf(self) -> dict[str, Any]:
        choose = self.random.choice
        count = choose([3, 100])
        return choose(
            [
                {"type": choose(["string", "number", "array", "object"])},
                {"const": self.value(1)},
                {"enum": choose([[f"v{n}" for n in range(count)], [[n] for n in range(count)]])},
                {choose(["minimum", "exclusiveMaximum", "multipleOf"]): choose(NUMBERS) or 1},
                {"pattern": choose(PATTERNS)},
                {"format": choose(FORMATS)},
                {"maxLength": choose([3, 10**6])},
                {"uniqueItems": True},
            ]
        )

    def schema(self, levels: int) -> dict[str, Any]:
        if levels <= 0:
            return self.leaf()
        choose = self.random.choice
        count = choose([1, 2, 20, 200])
        below = [self.schema(levels - 1 if count < 3 else 0) for _ in range(count)]
        by_name = dict(zip(NAMES, below, strict=False))
        by_pattern = {choose(PATTERNS) + name: part for name, part in list(by_name.items())[:12]}
        return choose(
            [
                {choose(["anyOf", "oneOf", "allOf", "prefixItems"]): below},
                {"anyOf": [*below, True]},
                {choose(["items", "contains", "additionalProperties", "not"]): below[0]},
                {choose(["properties", "dependentSchemas"]): by_name},
                {"patternProperties": by_pattern},
                {"propertyNames": self.leaf()},
                {"if": below[0], "then": below[-1], "else": self.leaf()},
                {"allOf": below, "unevaluatedProperties": False, "unevaluatedItems": self.leaf()},
                {"$ref": "#/$defs/a"},
            ]
        )

    def value(self, levels: int) -> Any:
        count = self.random.choice([1, 3, 40])
        kind = self.random.randrange(3) if levels else 0
        if kind == 0:
            return self.scalar()
        if kind == 1:
            return [self.value(levels - 1)] * count
        return {name: self.value(levels - 1) for name in NAMES[:count]}

    def cases(self) -> Iterator[tuple[JsonSchema, dict[str, Any]]]:
        """Yields schemas, each with a value whose check takes nearly all steps of a changeset."""
        while True:
            below = {self.random.choice(["items", "additionalProperties"]): self.schema(2)}
            whole = {"properties": {"a": below}, "$defs": {"a": self.schema(1)}}
            try:
                schema = JsonSchema.checked(whole, LIMITS)
            except FoldlogError:
                continue
            item, many = self.value(2), self.random.choice([_list, _object])
            count = schema.counter.count
            one = count({"a": many(item, 9)}, 10**12) - count({"a": many(item, 8)}, 10**12)
            elements = min(
                LIMITS.schema_steps_per_changeset_max // max(one, 1) + 1,
                LIMITS.event_bytes_max // (len(json.dumps(item)) + 8),
            )
            yield schema, {"a": many(item, max(elements, 1))}


def _list(item: Any, count: int) -> Any:
    return [item] * count


def _object(item: Any, count: int) -> Any:
    return {f"k{n}": item for n in range(count)}


def check(schema: JsonSchema, value: dict[str, Any]) -> tuple[float, float]:
    """Checks a value twice, as a changeset with it would be. Returns the seconds of the second
    check, and the further memory of both in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the memory
    before = peak_bytes()
    rules = RecordSchema(schema)
    rules.violation(value)  # compiles the schema
    began = time.process_time()
    rules.violation(value)
    took = time.process_time() - began
    return took, peak_bytes() - before


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in status if line.startswith("VmHWM")]
    return int(peak) * 1024


CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from itertools import islice
from tests.property.test_schema_budget import Maker, check
print(max(check(*case)[1] for case in islice(Maker(int(sys.argv[1])).cases(), int(sys.argv[2]))))
"""


@pytest.mark.parametrize(
    ("seed", "cases"), [(1, 40), pytest.param(2, 1_000, marks=pytest.mark.slow)]
)
def test_a_check_takes_little_memory(seed, cases):
    """The child has a limit on its memory, so a check without a bound ends the child alone."""
    arguments = [sys.executable, "-c", CHILD, str(seed), str(cases)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(float(done.stdout)) < MEMORY_MAX


def test_the_count_does_not_depend_on_earlier_counts():
    """Every process decides alike, whatever it has checked before."""
    cases = Maker(3).cases()
    for _ in range(12):
        schema, value = next(cases)
        fresh = StepCounter(schema.schema).count(value, 10**12)
        assert schema.counter.count(value, 10**12) == fresh
        schema.counter.count({"a": {"p1": 1, "aap2": "x"}}, 10**12)
        assert schema.counter.count(value, 10**12) == fresh


def test_a_count_ends_when_the_budget_is_used_up():
    cases = Maker(4).cases()
    for _ in range(12):
        schema, value = next(cases)
        needed = schema.counter.count(value, 10**12)
        assert schema.counter.count(value, needed) == needed
        with pytest.raises(TooManySteps):
            schema.counter.count(value, needed - 1)


def test_a_name_that_makes_a_place_costs_its_making():
    """4,095 names match each another set of twelve patterns: counting them took four seconds."""
    letters = "abcdefghijkl"
    parts = {letter: {"allOf": [{"minLength": 0}] * 80} for letter in letters}
    schema = JsonSchema.checked({"properties": {"a": {"patternProperties": parts}}}, LIMITS)
    names = ("".join(x for x in letters if n >> ord(x) - 97 & 1) for n in range(1, 4096))
    assert RecordSchema(schema).violation({"a": dict.fromkeys(names, "x")}).reason == TOO_MANY_STEPS


def main(seconds: float, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    until, worst, memory, cases = time.monotonic() + seconds, 0.0, 0.0, 0
    for schema, value in Maker(seed).cases():
        took, grew = check(schema, value)
        cases, memory = cases + 1, max(memory, grew)
        if took > worst:
            worst = took
            text = json.dumps(schema.schema)[:200]
            print(f"{took * 1000:.0f} ms, {len(value['a'])} elements: {text}", flush=True)
        if time.monotonic() > until:
            break
    print(f"{cases} cases, at most {worst * 1000:.0f} ms and {memory / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
