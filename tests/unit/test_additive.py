"""Schemas that are recognized as additive, schemas that are refused, and the reasons."""

from __future__ import annotations

import copy

import pytest

from foldlog.domain.additive import breaking_changes
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS

OLD = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": "^a"},
        "kind": {"enum": ["a", "b"]},
        "left": {"type": "integer", "minimum": 0, "exclusiveMaximum": 10, "multipleOf": 4},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5, "uniqueItems": True},
        "tree": {"$ref": "#/$defs/node"},
        "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "odd": {"not": {"const": 1}, "if": {"const": 2}, "then": False},
        "free": {"type": "object"},
    },
    "required": ["title", "kind"],
    "dependentRequired": {"left": ["tags"]},
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
        }
    },
}


def why(new, old=OLD):
    found = breaking_changes(JsonSchema.checked(old, LIMITS), JsonSchema.checked(new, LIMITS))
    return [(violation.path, violation.reason) for violation in found]


def changed(path: str, *value):
    """OLD with another value at a path, or with the path removed."""
    schema = copy.deepcopy(OLD)
    *way, last = path.split("/")
    at = schema
    for part in way:
        at = at[part]
    if value:
        at[last] = value[0]
    else:
        del at[last]
    return schema


@pytest.mark.parametrize(
    "new",
    [
        {},
        OLD,
        changed("title", "described"),
        changed("properties/due", {"type": "string", "format": "date"}),
        changed("properties/title/maxLength", 200),
        changed("properties/title/minLength"),
        changed("properties/title/pattern"),
        changed("properties/title/type", ["string", "null"]),
        changed("properties/kind/enum", ["b", "c", "a"]),
        changed("properties/kind", {"type": "string"}),
        changed("properties/left/minimum", -1),
        changed("properties/left/exclusiveMaximum", 10.5),
        changed("properties/left", {"type": "number", "maximum": 10, "multipleOf": 2}),
        changed("properties/tags/items/type", ["string", "integer"]),
        changed("properties/tags/uniqueItems", False),
        changed("properties/when/anyOf", [{"type": ["string", "null"]}]),
        changed("properties/when", {"type": ["string", "null", "integer"]}),
        changed("properties/odd/not"),
        changed("required", ["kind"]),
        changed("dependentRequired/left", []),
        changed("dependentRequired", {"free": ["title"]}),
        changed("additionalProperties", {"type": "integer"}),
        changed("additionalProperties"),
        changed("$defs/node/properties/value/type", ["number", "null"]),
        changed("properties/tree", {"allOf": [{"$ref": "#/$defs/node"}, {"minProperties": 0}]}),
        changed("patternProperties", {"^x-": {"type": "string"}, "^t": True}),
        changed("propertyNames", {"type": "string"}),
    ],
)
def test_additive_schemas_are_recognized(new):
    assert why(new) == []


@pytest.mark.parametrize(
    ("new", "path", "reason"),
    [
        (changed("required", ["title", "kind", "left"]), "/required", "requires left"),
        (changed("properties/title/maxLength", 50), "/properties/title/maxLength", "50 may forbid"),
        (changed("properties/title/pattern", "^b"), "/properties/title/pattern", '"^b" may forbid'),
        (changed("properties/title/format", "date"), "/properties/title/format", "new demand"),
        (changed("properties/title/type", "integer"), "/properties/title/type", "type string"),
        (changed("properties/kind/enum", ["a"]), "/properties/kind", 'forbids "b" now'),
        (changed("properties/kind", False), "/properties/kind", "forbids all values now"),
        (changed("properties/left/minimum", 1), "/properties/left/minimum", "1 may forbid"),
        (changed("properties/left/exclusiveMaximum", 9), "/properties/left/exclusiveMaximum", "9"),
        (changed("properties/left/multipleOf", 8), "/properties/left/multipleOf", "8 may forbid"),
        (changed("properties/left/exclusiveMinimum", 0), "/properties/left/exclusiveMinimum", "0"),
        (changed("properties/tags/items/uniqueItems", True), "", ""),
        (changed("properties/tags/maxItems", 4), "/properties/tags/maxItems", "4 may forbid"),
        (changed("properties/tags/items/maxLength", 5), "/properties/tags/items/maxLength", "5"),
        (changed("properties/free/uniqueItems", True), "", ""),
        (changed("properties/free/minProperties", 1), "/properties/free/minProperties", "1"),
        (changed("properties/odd/then", {"type": "null"}), "/properties/odd/if", "has changed"),
        (changed("properties/free"), "/additionalProperties", "free: forbids all"),
        (
            changed("dependentRequired/free", ["tags"]),
            "/dependentRequired",
            "may forbid values",
        ),
        (
            changed("$defs/node/properties/value/minimum", 0),
            "/properties/tree/$ref/properties/value/minimum",
            "0 is a new demand",
        ),
        (
            changed("properties/when/anyOf", [{"type": "string"}]),
            "/properties/when/anyOf",
            "may forbid",
        ),
        (changed("patternProperties", {"^t": False}), "/patternProperties/^t", "forbids all"),
    ],
)
def test_other_schemas_are_refused_with_place_and_reason(new, path, reason):
    found = why(new)
    if not path:
        assert found == []  # the keyword applies to other types
        return
    assert any(where.startswith(path) and reason in said for where, said in found), found


def test_stored_records_may_already_have_a_new_property():
    """The old schema allows the property with any value, so `maxLength` is a new demand."""
    old = {"properties": {"title": True}}
    ((path, reason),) = why({"properties": {"title": True, "due": {"maxLength": 5}}}, old)
    assert (path, reason) == ("/properties/due/maxLength", "5 is a new demand")
    assert why({"properties": {"title": True, "due": True}}, old) == []


def test_recursive_schemas_are_compared():
    """The definitions of the two schemas may have different names."""
    old = {
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "$defs": {
            "x": {"properties": {"a": {"$ref": "#/$defs/y"}, "n": {"minimum": 1}}},
            "y": {"properties": {"a": {"$ref": "#/$defs/x"}, "n": {"minimum": 2}}},
        },
    }
    node = {"properties": {"a": {"$ref": "#/$defs/z"}, "n": {"minimum": 1}}}
    new = {"properties": {"a": {"$ref": "#/$defs/z"}}, "$defs": {"z": node}}
    assert why(new, old) == []
    node["properties"]["n"]["minimum"] = 2
    assert why(new, old)


def test_unevaluated_properties_are_left_alone():
    """The members that they cover depend on all other members of the schema."""
    old = {"properties": {"a": True}, "patternProperties": {"^x": True}}
    old |= {"unevaluatedProperties": False}
    assert why(old, old) == []
    assert why({"properties": {"a": True}, "unevaluatedProperties": False}, old)
