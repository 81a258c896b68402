"""An additive schema allows all documents that the old schema allowed."""

from __future__ import annotations

import itertools

import jsonschema_rs
from hypothesis import assume, given
from hypothesis import strategies as st

from foldlog.domain.additive import breaking_changes
from foldlog.domain.errors import InvalidSchema
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from tests.examples import examples

NAMES = ("a", "b", "ab", "c")
numbers = st.sampled_from([-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4])
strings = st.sampled_from(["", "a", "b", "ab", "ba", "2026-11-23", "aaa"])
scalars = st.one_of(st.none(), st.booleans(), numbers, strings)
VALUES = [None, True, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4]
VALUES += ["", "a", "b", "ab", "ba", "aaa", "2026-11-23"]
FEW = [None, 0, 2, "a", []]


def small_documents():
    """All small documents; few enough to check each of them against every schema."""
    yield from VALUES
    for length in range(3):
        yield from map(list, itertools.product(FEW, repeat=length))
    for chosen in itertools.product([*FEW, "absent"], repeat=len(NAMES)):
        yield {name: value for name, value in zip(NAMES, chosen, strict=True) if value != "absent"}
    for inner in ({}, {"a": 1}, {"b": "a"}, {"a": {"a": 0}}, [1], ["a", 1], [{"a": 1}], 3, "ba"):
        yield [inner]
        yield from ({name: inner} for name in NAMES)


DOCUMENTS = list(small_documents())
counts = st.integers(0, 3)
types = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
references = st.sampled_from(["#/$defs/one", "#/$defs/two"])


#: groups of related keywords; keywords drawn from all would seldom interact
THEMES = [
    "type minimum maximum exclusiveMinimum exclusiveMaximum multipleOf enum const anyOf",
    "type minLength maxLength pattern format enum const oneOf not",
    "properties patternProperties additionalProperties required propertyNames type",
    "properties additionalProperties allOf dependentRequired minProperties maxProperties",
    "properties patternProperties unevaluatedProperties dependentSchemas $ref",
    "items prefixItems minItems maxItems uniqueItems contains minContains unevaluatedItems type",
    "if then else anyOf oneOf not $ref title",
]


def keywords(below, *, may_refer: bool, at_least: int = 0, theme: str = ""):
    """Draws the keywords of one schema; each is optional."""
    names = st.sampled_from(NAMES)
    optional = {
        "type": st.one_of(types, st.lists(types, min_size=1, max_size=3, unique=True)),
        "enum": st.lists(scalars, min_size=1, max_size=3, unique_by=repr),
        "const": scalars,
        "minimum": numbers,
        "exclusiveMinimum": numbers,
        "maximum": numbers,
        "exclusiveMaximum": numbers,
        "multipleOf": st.sampled_from([0.5, 1, 2, 4]),
        "minLength": counts,
        "maxLength": counts,
        "pattern": st.sampled_from(["a", "^a", "b$"]),
        "format": st.just("date"),
        "minItems": counts,
        "maxItems": counts,
        "uniqueItems": st.booleans(),
        "minProperties": counts,
        "maxProperties": counts,
        "required": st.lists(names, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(
            names, st.lists(names, max_size=2, unique=True), max_size=2
        ),
        "properties": st.dictionaries(names, below, max_size=3),
        "patternProperties": st.dictionaries(st.sampled_from(["a", "^b", "b$"]), below, max_size=2),
        "additionalProperties": below,
        "propertyNames": below,
        "items": below,
        "prefixItems": st.lists(below, min_size=1, max_size=2),
        "contains": below,
        "minContains": counts,
        "allOf": st.lists(below, min_size=1, max_size=2),
        "anyOf": st.lists(below, min_size=1, max_size=2),
        "oneOf": st.lists(below, min_size=1, max_size=2),
        "not": below,
        "if": below,
        "then": below,
        "else": below,
        "dependentSchemas": st.dictionaries(names, below, max_size=1),
        "unevaluatedProperties": below,
        "unevaluatedItems": below,
        "title": st.just("a title"),
    }
    if may_refer:
        optional["$ref"] = references
    return st.lists(
        st.sampled_from([k for k in sorted(optional) if not theme or k in theme.split()]),
        min_size=at_least,
        max_size=5,
        unique=True,
    ).flatmap(lambda chosen: st.fixed_dictionaries({name: optional[name] for name in chosen}))


leaves = st.one_of(
    st.booleans(),
    *(keywords(st.booleans(), may_refer=True, at_least=1, theme=theme) for theme in THEMES[:2]),
)
small = st.one_of(
    leaves, *(keywords(leaves, may_refer=True, at_least=1, theme=theme) for theme in THEMES)
)
schemas = st.one_of(leaves, small, keywords(small, may_refer=True))


def is_map(part):
    return isinstance(part, dict)


@st.composite
def edited(draw, part):
    """The schema with a few changes, because two random schemas are rarely additive."""
    if not is_map(part):
        return draw(st.one_of(st.just(part), schemas))
    changed = {}
    for name, value in part.items():
        what = draw(st.sampled_from(["keep", "keep", "keep", "drop", "change"]))
        if what == "drop":
            continue
        changed[name] = value if what == "keep" else draw(edited_value(name, value))
    if draw(st.integers(0, 3)) == 0:
        changed |= draw(keywords(schemas, may_refer=True, at_least=1).map(first_of))
    return changed


def first_of(part):
    name = next(iter(part))
    return {name: part[name]}


def edited_value(name, value):
    if name in ("properties", "patternProperties", "dependentSchemas"):
        return st.fixed_dictionaries({key: edited(item) for key, item in value.items()})
    if name in ("allOf", "anyOf", "oneOf", "prefixItems"):
        return st.tuples(*map(edited, value)).map(list)
    if name in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
        return counts
    if name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        return numbers
    if name == "enum":
        return st.lists(scalars, max_size=2).map(lambda more: distinct([*value, *more]))
    if name == "type":
        before = [value] if isinstance(value, str) else value
        return types.map(lambda more: distinct([*before, more]))
    if name == "required":
        return st.sampled_from([value[:-1], [*value, "z"]])
    if is_map(value) or isinstance(value, bool):
        return edited(value) if name != "uniqueItems" else st.booleans()
    return st.just(value)


def distinct(values):
    return list({repr(value): value for value in values}.values())


@st.composite
def pairs(draw):
    """An old schema and a new one: an edited one, or another one with the same keywords."""
    definitions = {"one": draw(leaves), "two": draw(small)}
    theme = draw(st.sampled_from(THEMES))
    of_theme = keywords(leaves, may_refer=True, at_least=1, theme=theme)
    if draw(st.booleans()):
        old, new = draw(of_theme), draw(of_theme)
    else:
        old = draw(st.one_of(of_theme, schemas))
        new = draw(edited(old))
    if draw(st.booleans()):
        changed = {name: draw(edited(part)) for name, part in definitions.items()}
    else:
        changed = definitions
    return (
        {"allOf": [old], "$defs": definitions},
        {"allOf": [new], "$defs": changed},
    )


def checked(schema):
    try:
        return JsonSchema.checked(schema, LIMITS)
    except InvalidSchema:
        assume(False)


@examples(200)
@given(pairs())
def test_valid_documents_stay_valid(pair):
    """Checks all small documents instead of a sample."""
    old, new = map(checked, pair)
    if breaking_changes(old, new):
        return
    for value in DOCUMENTS:
        assert not old.fits(value) or new.fits(value), value


@examples(50)
@given(pairs())
def test_another_comparison_agrees(pair):
    """The validator has its own comparison, which proves less."""
    old, new = map(checked, pair)
    if not breaking_changes(old, new):
        try:
            covers = canonical_of(new).covers(canonical_of(old))
        except jsonschema_rs.canonical.UnsupportedOperand:
            return  # it cannot decide
        assert covers is not jsonschema_rs.canonical.Containment.NO


def canonical_of(schema):
    return jsonschema_rs.canonicalize(
        dict(schema.schema), draft=jsonschema_rs.Draft202012, validate_formats=True, offline=True
    )


@examples(50)
@given(st.builds(dict, schemas.filter(is_map)))
def test_a_schema_is_additive_to_itself(part):
    schema = checked({"allOf": [part], "$defs": {"one": True, "two": {"items": True}}})
    assert breaking_changes(schema, schema) == []
