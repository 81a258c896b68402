"""The schemas that a collection may have, and the reported violations of a document."""

from __future__ import annotations

import time

import pytest

from foldlog.domain.errors import InvalidSchema, LimitExceeded
from foldlog.domain.json_schema import DIALECT, IN_PLACE_MAX, JsonSchema
from foldlog.domain.limits import LIMITS, Limits


def nested(depth: int) -> dict:
    schema: dict = {}
    for _ in range(depth):
        schema = {"items": schema}
    return {"properties": {"a": schema}}


def doubling(depth: int) -> dict:
    definitions = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{depth}": True}}


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        (True, ""),
        ([], ""),
        ({"type": "strin"}, "/type"),
        ({"type": "string"}, "/type"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema"),
        ({"properties": {"a": {"requird": ["b"]}}}, "/properties/a/requird"),
        ({"properties": {"a": {"minimum": "1"}}}, "/properties/a/minimum"),
        ({"properties": {"a/b": {"pattern": "("}}}, "/properties/a~1b/pattern"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "/properties/a/pattern"),
        ({"properties": {"a": {"pattern": r"(x)\1"}}}, "/properties/a/pattern"),
        ({"patternProperties": {"(": True}}, "/patternProperties/("),
        ({"properties": {"a": {"format": "secret"}}}, "/properties/a/format"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1/x"}}}, "/properties/a/$ref"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "/properties/a/$ref"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {}}, "/properties/a/$ref"),
        ({"properties": {"a": {"$ref": "#"}}}, "/properties/a/$ref"),
        ({"properties": {"a": {"$defs": {}}}}, "/properties/a/$defs"),
        ({"$defs": {"a b": True}}, "/$defs"),
        ({"$id": "http://127.0.0.1/x"}, "/$id"),
        ({"$dynamicRef": "#a"}, "/$dynamicRef"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "/$defs/a"),
        ({"$defs": {"a": {"anyOf": [{"not": {"$ref": "#/$defs/a"}}]}}}, "/$defs/a"),
        ({"const": 2**60}, ""),
        (nested(LIMITS.schema_nesting_max), ""),
        (doubling(11), ""),
    ],
)
def test_invalid_schemas_are_refused_with_a_pointer(schema, pointer):
    with pytest.raises(InvalidSchema) as refused:
        JsonSchema.checked(schema, LIMITS)
    assert refused.value.extra["pointer"] == pointer
    assert str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": DIALECT, "type": ["object", "null"], "title": "x", "x-note": {"any": "thing"}},
        {"properties": {"$ref": {"type": "string"}, "requird": {"enum": [{"$ref": 1}]}}},
        {
            "properties": {"child": {"$ref": "#/$defs/node"}},
            "$defs": {"node": {"properties": {"child": {"$ref": "#/$defs/node"}}}},
        },
        doubling(7),
    ],
)
def test_valid_schemas(schema):
    """Property names may equal keywords. A recursion that goes deeper into a value ends with it."""
    assert JsonSchema.checked(schema, LIMITS).fits({"child": {"child": {}}})


def test_a_schema_has_a_limit():
    with pytest.raises(LimitExceeded):
        JsonSchema.checked({"title": "x" * 100}, Limits(schema_bytes_max=100))


def test_schemas_that_branch_are_counted_not_followed():
    """Each level doubles the schemas of one value: 2^50 here, in a schema of 4 kB."""
    began = time.perf_counter()
    with pytest.raises(InvalidSchema, match=str(IN_PLACE_MAX)):
        JsonSchema.checked(doubling(50), LIMITS)
    assert time.perf_counter() - began < 10


A = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    "a",
    [
        {"allOf": [{"properties": {"x": A}}, {"properties": {"x": A}}]},
        {"properties": {"x": A}, "patternProperties": {"^x": A}},
        {"anyOf": [{"additionalProperties": A}, {"items": A}, {"additionalProperties": A}]},
        {"prefixItems": [True, A], "contains": A},
        {"items": A, "contains": {"properties": {"y": A}, "items": A}},
    ],
)
def test_a_recursion_that_branches_is_refused(a):
    """Each level of a value doubles the schemas of the next: a value of 32 levels, which any device
    may send, would need 2^32."""
    began = time.perf_counter()
    with pytest.raises(InvalidSchema, match="branches"):
        JsonSchema.checked({"properties": {"top": A}, "$defs": {"a": a}}, LIMITS)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "a",
    [
        {"properties": {"left": A, "right": A}},
        {"properties": {"x": A}, "patternProperties": {"^y": A}, "additionalProperties": A},
        {"anyOf": [{"type": "string"}, {"items": A}, {"additionalProperties": A}]},
        {"allOf": [{"properties": {"x": A}}, {"properties": {"x": {"type": "object"}}}]},
        {"properties": {"children": {"items": A}, "named": {"additionalProperties": A}}},
    ],
)
def test_a_recursion_without_branches_is_fine(a):
    """Trees: only a few schemas apply at each place of a value, at any depth."""
    assert JsonSchema.checked({"properties": {"top": A}, "$defs": {"a": a}}, LIMITS)


def test_many_fields_are_no_branches():
    """A large schema of an ordinary kind is checked quickly."""
    fields = {f"f{n}": {"properties": {f"g{m}": {"type": "string"} for m in range(5)}}
              for n in range(400)}  # fmt: skip
    began = time.perf_counter()
    JsonSchema.checked({"properties": fields}, Limits(schema_bytes_max=2**20))
    assert time.perf_counter() - began < 10


def test_a_pattern_takes_linear_time():
    """A user's value must never stop the service, for any pattern of an admin. A backtracking
    matcher needs 2^n steps here."""
    schema = JsonSchema.checked({"properties": {"a": {"pattern": "^(a+)+$"}}}, LIMITS)
    began = time.perf_counter()
    assert not schema.fits({"a": "a" * 100_000 + "b"})
    assert time.perf_counter() - began < 10


def test_the_same_schema_has_the_same_digest():
    """The order of members is irrelevant. Another schema has another digest."""
    one, same, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}
    digests = [JsonSchema({"properties": schema}).digest for schema in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


SCHEMA = {
    "properties": {
        "title": {"type": "string", "maxLength": 3},
        "kind": {"enum": ["x" * 200]},
        "owner": {"$ref": "#/$defs/owner"},
        "list": {"items": {"type": "integer"}},
        "free": {"additionalProperties": {"type": "integer"}},
    },
    "required": ["title"],
    "additionalProperties": False,
    "$defs": {"owner": {"properties": {"age": {"minimum": 0}}}},
}


@pytest.mark.parametrize(
    ("document", "path", "reason"),
    [
        ({}, "", "lacks title"),
        ({"title": 5}, "/title", 'does not fit type "string"'),
        ({"title": "secret"}, "/title", "does not fit maxLength 3"),
        ({"title": "", "secret": 1}, "", "has a field that the schema does not allow"),
        ({"title": "", "owner": {"age": -1}}, "/owner/age", "does not fit minimum 0"),
        ({"title": "", "list": [1, "secret"]}, "/list/1", 'does not fit type "integer"'),
        ({"title": "", "free": {"secret": "s"}}, "/free/*", 'does not fit type "integer"'),
        ({"title": "", "kind": "secret"}, "/kind", f'does not fit enum ["{"x" * 98}...'),
    ],
)
def test_the_text_of_a_violation_comes_from_the_schema_alone(document, path, reason):
    """A refusal is stored for ever, so it must be free of a user's text, names included."""
    (fault,) = JsonSchema.checked(SCHEMA, LIMITS).faults(document)
    assert (fault.violation.path, fault.violation.reason) == (path, reason)
    assert "secret" not in path + reason


def test_formats_are_checked():
    schema = JsonSchema.checked({"properties": {"due": {"format": "date"}}}, LIMITS)
    assert schema.fits({"due": "2026-11-23"}) and not schema.fits({"due": "tomorrow"})


def test_a_boolean_is_no_number_and_one_is_one_point_zero():
    """Booleans and numbers are compared as everywhere in the product."""
    schema = JsonSchema.checked({"properties": {"n": {"const": 1}}}, LIMITS)
    assert schema.fits({"n": 1.0}) and not schema.fits({"n": True})


def test_the_patterns_of_a_schema_share_a_bound_of_memory():
    """900 patterns of 900 KB each took 790 MB."""
    fields = {f"f{n}": {"pattern": f"[^a]{{900}}{n}"} for n in range(20)}
    with pytest.raises(InvalidSchema, match="patterns") as refused:
        JsonSchema.checked({"properties": fields}, LIMITS)
    assert refused.value.extra["pointer"].startswith("/properties/f")
    few = {name: fields[name] for name in ("f0", "f1")}
    assert JsonSchema.checked({"properties": few}, LIMITS).fits({"f0": "x" * 900 + "0"})
