"""Decides whether a new schema is additive, which means that it allows all values that the old
schema allowed.

Only the two schemas are compared; stored records are ignored. If the comparison cannot show that a
schema is additive, the schema is treated as not additive.

Each keyword of the new schema is checked separately. For example, the new schema has `"minimum":
1`. This keyword is additive if the old schema has a keyword that is at least as strict, such as
`"minimum": 2`. It is also additive if the old schema forbids numbers, because `minimum` applies to
numbers only. The subschemas of properties and items are compared in the same way.

The comparison understands these keywords: types, `const` and `enum`, ranges and lengths,
`multipleOf`, `pattern` and `format` (unchanged or removed), `required`, `dependentRequired`,
`properties`, `patternProperties`, `additionalProperties`, `propertyNames`, items, `$ref` (also
recursive), `allOf`, `anyOf`. The keywords `oneOf`, `not`, `if`, `contains`, `dependentSchemas` and
`unevaluated...` are accepted only if they are removed or unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Any

import jsonschema_rs
import msgspec

from .json_pointers import escaped
from .json_schema import JsonSchema, Violation, matches
from .schema_keywords import (
    ANNOTATIONS,
    ONE_SCHEMA,
    SCHEMA_LIST,
    SCHEMA_MAP,
    Schema,
    compiled,
    name_of,
    words,
)

#: comparisons; a schema that needs more is too complex
STEPS_MAX = 20_000
REASONS_MAX = 10

TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
#: keyword -> the only types that it applies to
TYPES_OF_KEYWORD: Mapping[str, frozenset[str]] = {
    keyword: frozenset(types.split())
    for types, keywords in {
        "integer number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
        "string": "minLength maxLength pattern format",
        "array": "items prefixItems minItems maxItems uniqueItems contains minContains maxContains "
        "unevaluatedItems",
        "object": "properties patternProperties additionalProperties propertyNames required "
        "dependentRequired dependentSchemas minProperties maxProperties unevaluatedProperties",
    }.items()
    for keyword in keywords.split()
}
#: keywords that are compared together
RELATED: Mapping[str, tuple[str, ...]] = {
    "if": ("if", "then", "else"),
    "then": ("if", "then", "else"),
    "else": ("if", "then", "else"),
    "contains": ("contains", "minContains", "maxContains"),
    "minContains": ("contains", "minContains", "maxContains"),
    "maxContains": ("contains", "minContains", "maxContains"),
}
#: keywords of which only equality is recognized
OPAQUE = words("oneOf not dependentSchemas") | RELATED.keys()
OBJECT_KEYWORDS = words("properties patternProperties additionalProperties")


def breaking_changes(old: JsonSchema, new: JsonSchema) -> list[Violation]:
    """Returns the places where the new schema may refuse a value that the old schema allows,
    `REASONS_MAX` places at most. The list is empty if the new schema is additive."""
    try:
        return list(_Comparison(old.schema, new.schema).reasons())[:REASONS_MAX]
    except _TooManySteps:
        return [
            Violation("", "cannot be shown to be additive: the schemas are too large to compare")
        ]


class _TooManySteps(Exception):
    pass


_encode = msgspec.json.encode


class _Comparison:
    """Compares an old schema with a new one. Both schemas must be valid.

    The methods use these names. `new` is one subschema of the new schema. `old`, `olds` and `parts`
    are lists of those subschemas of the old schema that apply to the same value as `new`. `pointer`
    and `where` are JSON pointers to a place in the new schema.
    """

    def __init__(self, old: Schema, new: Schema):
        self.old, self.new = old, new
        self._old_definitions = old.get("$defs", {})
        self._new_definitions = new.get("$defs", {})
        #: whether equal references mean equal schemas
        self._same_definitions = _same(
            {"$defs": self._old_definitions}, {"$defs": self._new_definitions}
        )
        self._under_way: list[tuple[bytes, bytes]] = []
        self._steps = 0

    def reasons(self) -> Iterator[Violation]:
        yield from self._unmet("", [self.old], self.new)

    # -- Old and new, as a whole ------------------------------------------------------------------

    def _implies(self, old: list[Any], new: Any) -> bool:
        """Returns whether `new` allows each value that all schemas of `old` allow."""
        return next(self._unmet("", old, new), None) is None

    def _unmet(self, pointer: str, old: list[Any], new: Any) -> Iterator[Violation]:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise _TooManySteps
        old = _distinct(old)
        pair = (_encode(old), _encode(new))
        if pair in self._under_way:
            # A recursive schema. Each recursion goes deeper into the value, and values end.
            return
        self._under_way.append(pair)
        try:
            yield from self._compare(pointer, old, new)
        finally:
            self._under_way.pop()

    def _compare(self, pointer: str, old: list[Any], new: Any) -> Iterator[Violation]:
        parts = self._flattened(old)
        if parts is None or new is True:
            return  # the old schema forbids all values, or the new one allows all
        if new is False:
            if types_of(parts):
                yield Violation(pointer, "forbids all values now")
            return
        values = self._listed_values(parts)
        if values is not None:
            yield from self._refused_values(pointer, values, new)
            return
        for keyword in new:
            if keyword not in ANNOTATIONS and not keyword.startswith("x-"):
                yield from self._check_keyword(pointer, parts, new, keyword)

    def _flattened(self, old: Iterable[Any]) -> list[Any] | None:
        """Returns a list of all schemas that apply to the same value as `old`: the schemas in
        `old`, and those to which their `$ref` and `allOf` lead.

        Returns `None` if one of these schemas is `false`, which forbids every value.
        """
        parts: list[Any] = []
        for part in old:
            if part is False:
                return None
            if part is not True:
                parts.append(part)
                below = list(part.get("allOf", ()))
                if "$ref" in part:
                    below.append(self._old_definitions[name_of(part["$ref"])])
                further = self._flattened(below)
                if further is None:
                    return None
                parts += further
        return _distinct(parts)

    def _listed_values(self, parts: list[Any]) -> list[Any] | None:
        """Returns the list of all values that the old schema allows, if the old schema has a
        `const` or an `enum`. A listed value that another keyword of the old schema forbids is left
        out. Returns `None` if the old schema has no `const` or `enum`."""
        for part in parts:
            listed = [part["const"]] if "const" in part else part.get("enum")
            if listed is not None:
                fitting = [self._validator(p, self._old_definitions) for p in parts]
                return [v for v in listed if all(f.is_valid(v) for f in fitting)]
        return None

    def _refused_values(self, pointer: str, values: list[Any], new: Schema) -> Iterator[Violation]:
        validator = self._validator(new, self._new_definitions)
        for value in values:
            if not validator.is_valid(value):
                yield Violation(pointer, f"forbids {_shown(value)} now")

    def _validator(self, part: Schema, definitions: Schema) -> jsonschema_rs.Validator:
        return compiled({**part, "$defs": definitions})

    # -- One keyword of the new schema ------------------------------------------------------------

    def _check_keyword(
        self, pointer: str, parts: list[Any], new: Schema, keyword: str
    ) -> Iterator[Violation]:
        types = TYPES_OF_KEYWORD.get(keyword)
        if types is not None and types_of(parts).isdisjoint(types):
            return
        value = new[keyword]
        where = f"{pointer}/{keyword}"
        if keyword == "$ref":
            yield from self._unmet(where, parts, self._new_definitions[name_of(value)])
        elif keyword == "allOf":
            for index, branch in enumerate(value):
                yield from self._unmet(f"{where}/{index}", parts, branch)
        elif keyword in OBJECT_KEYWORDS:
            # all three are compared at once
            if keyword == next(name for name in new if name in OBJECT_KEYWORDS):
                yield from self._compare_objects(pointer, parts, new)
        elif keyword in ("items", "prefixItems"):
            if keyword == next(name for name in new if name in ("items", "prefixItems")):
                yield from self._compare_arrays(pointer, parts, new)
        elif not self._is_met(parts, new, keyword):
            yield Violation(where, self._reason(parts, keyword, value))

    def _is_met(self, parts: list[Any], new: Schema, keyword: str) -> bool:
        if keyword in OPAQUE or keyword.startswith("unevaluated"):
            return self._is_unchanged(parts, new, keyword)
        if self._is_met_directly(parts, keyword, new[keyword]):
            return True
        # The demand is met if each branch of an `anyOf` or `oneOf` meets it.
        demand = {keyword: new[keyword]}
        return any(
            all(self._implies([branch], demand) for branch in part[alternatives])
            for part in parts
            for alternatives in ("anyOf", "oneOf")
            if alternatives in part
        )

    def _is_met_directly(self, parts: list[Any], keyword: str, value: Any) -> bool:
        """Returns whether every value that the old schema allows also satisfies one keyword of the
        new schema. `value` is the value of this keyword in the new schema.

        `anyOf` and `oneOf` of the old schema are ignored here; `_is_met` considers them.
        """
        if keyword in _MEETS:
            return any(_MEETS[keyword](part, value) for part in parts)
        if keyword == "type":
            return types_of(parts) <= _types({"type": value})
        if keyword == "propertyNames":
            old = [part[keyword] for part in parts if keyword in part]
            return self._implies([*old, {"type": "string"}], value)
        if keyword == "required":
            return set(value) <= _required(parts)
        if keyword == "dependentRequired":
            return all(set(names) <= _required_with(parts, name) for name, names in value.items())
        if keyword == "anyOf":
            return any(self._implies(parts, branch) for branch in value)
        # `const` and `enum`: the old schema lists no values, or they were compared before.
        return False

    def _is_unchanged(self, parts: list[Any], new: Schema, keyword: str) -> bool:
        names = RELATED.get(keyword, (keyword,))

        def taken(part: Schema) -> Schema:
            if keyword.startswith("unevaluated"):
                return part  # depends on all other members of the schema
            return {name: part[name] for name in names if name in part}

        wanted = taken(new)
        if not self._same_definitions and b'"$ref"' in _encode(wanted):
            return False
        return any(_same(taken(part), wanted) for part in parts)

    def _reason(self, parts: list[Any], keyword: str, value: Any) -> str:
        if keyword == "required":
            missing = sorted(set(value) - _required(parts))
            return f"requires {', '.join(missing)}, which the version before allows to be missing"
        before = [part[keyword] for part in parts if keyword in part]
        if keyword == "type":
            kinds = ", ".join(sorted(types_of(parts) - _types({"type": value})))
            return f"forbids the type {kinds} now"
        if not before:
            return f"{_shown(value)} is a new demand"
        if keyword in OPAQUE or keyword.startswith("unevaluated"):
            return "cannot be shown to be additive: it has changed"
        return f"{_shown(value)} may forbid values that {_shown(before[0])} allows"

    # -- Into objects and arrays ------------------------------------------------------------------

    def _compare_objects(self, pointer: str, parts: list[Any], new: Schema) -> Iterator[Violation]:
        """Yields a violation for each place where the new schema may refuse an object that the old
        schema allows. Compares only `properties`, `patternProperties` and
        `additionalProperties`."""
        olds = [part for part in parts if OBJECT_KEYWORDS & part.keys()]
        for name, demanded in new.get("properties", {}).items():
            where = f"{pointer}/properties/{escaped(name)}"
            yield from self._unmet(where, _schemas_of_name(olds, name), demanded)
        for pattern, demanded in _patterns(new).items():
            where = f"{pointer}/patternProperties/{escaped(pattern)}"
            yield from self._compare_pattern(where, olds, pattern, demanded)
        others = new.get("additionalProperties", True)
        if others is not True:
            yield from self._compare_others(f"{pointer}/additionalProperties", olds, new, others)

    def _compare_pattern(
        self, where: str, olds: list[Any], pattern: str, demanded: Any
    ) -> Iterator[Violation]:
        """Compares one member of `patternProperties` of the new schema: the properties that match
        `pattern` must satisfy the schema `demanded`. Yields a violation for each place where the
        old schema allows other values for these properties."""
        same = [old["patternProperties"][pattern] for old in olds if pattern in _patterns(old)]
        if same and self._implies(same, demanded):
            return
        for name in sorted(_named_by(olds)):
            if matches(pattern, name):
                yield from self._unmet(where, _schemas_of_name(olds, name), demanded)
        yield from self._compare_unnamed(where, olds, demanded)

    def _compare_others(
        self, where: str, olds: list[Any], new: Schema, demanded: Any
    ) -> Iterator[Violation]:
        """Compares `additionalProperties` of the new schema: all properties that the new schema
        neither names nor matches by a pattern must satisfy the schema `demanded`. Yields a
        violation for each place where the old schema allows other values for these properties."""
        patterns = _patterns(new)
        for name in sorted(_named_by(olds) - new.get("properties", {}).keys()):
            if not any(matches(pattern, name) for pattern in patterns):
                for why in self._unmet(where, _schemas_of_name(olds, name), demanded):
                    yield Violation(why.path, f"{name}: {why.reason}")
        yield from self._compare_unnamed(where, olds, demanded, frozenset(patterns))

    def _compare_unnamed(
        self,
        where: str,
        olds: list[Any],
        demanded: Any,
        patterns_known: frozenset[str] = frozenset(),
    ) -> Iterator[Violation]:
        """Compares the properties whose names are missing in `properties` of the old schema. In the
        old schema, only `patternProperties` and `additionalProperties` apply to them. Yields a
        violation for each place where the old schema allows a value for such a property that the
        schema `demanded` may refuse. Patterns in `patterns_known` are skipped.

        If one of the schemas in `olds` allows only values that `demanded` allows, the method yields
        nothing, because each object must satisfy all schemas in `olds`.
        """
        first: list[Violation] = []
        for old in olds or [{}]:
            found = list(self._unmet(where, [old.get("additionalProperties", True)], demanded))
            for pattern, schema in _patterns(old).items():
                if pattern not in patterns_known:
                    found += self._unmet(where, [schema], demanded)
            if not found:
                return
            first = first or found
        yield from first

    def _compare_arrays(self, pointer: str, parts: list[Any], new: Schema) -> Iterator[Violation]:
        olds = [part for part in parts if "items" in part or "prefixItems" in part]
        first = new.get("prefixItems", [])
        for index, demanded in enumerate(first):
            where = f"{pointer}/prefixItems/{index}"
            yield from self._unmet(where, [_schema_of_item(old, index) for old in olds], demanded)
        longest = max((len(old.get("prefixItems", ())) for old in olds), default=0)
        if "items" in new:
            for index in range(len(first), max(longest, len(first)) + 1):
                found = [_schema_of_item(old, index) for old in olds]
                yield from self._unmet(f"{pointer}/items", found, new["items"])


def _distinct(schemas: Iterable[Any]) -> list[Any]:
    """Returns a list of the schemas without duplicates.

    The comparison of a recursive schema stops when it meets a list of schemas that it is already
    comparing. With duplicates, the list would become longer at each level of the recursion, and the
    comparison would never stop.
    """
    return list({_encode(schema): schema for schema in schemas}.values())


def _shown(value: Any) -> str:
    text = _encode(value).decode()
    return text if len(text) <= 60 else text[:60] + "..."


def _same(a: Any, b: Any) -> bool:
    return _encode(_plain(a), order="sorted") == _encode(_plain(b), order="sorted")


def _plain(schema: Any) -> Any:
    """Returns a schema with its annotations, such as `title`, removed. Returns `true`, `false` and
    other values unchanged."""
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ONE_SCHEMA:
            plain[keyword] = _plain(value)
        elif keyword in SCHEMA_LIST:
            plain[keyword] = [_plain(item) for item in value]
        elif keyword in SCHEMA_MAP:
            plain[keyword] = {name: _plain(item) for name, item in value.items()}
        elif keyword not in ANNOTATIONS:
            plain[keyword] = value
    return plain


def _types(schema: Schema) -> frozenset[str]:
    kinds = schema.get("type", TYPES)
    found = frozenset([kinds] if isinstance(kinds, str) else kinds)
    return found | {"integer"} if "number" in found else found


def types_of(parts: Iterable[Schema]) -> frozenset[str]:
    """Returns the set of the JSON types that all of these schemas allow, as names such as
    `string`."""
    return TYPES.intersection(*map(_types, parts))


def _required(parts: Iterable[Schema]) -> set[str]:
    return {name for part in parts for name in part.get("required", ())}


def _required_with(parts: list[Any], name: str) -> set[str]:
    """Returns the set of the names of all properties that an object with the property `name` must
    have. These are the names from `required` and `dependentRequired` in the schemas `parts`."""
    depending = (part.get("dependentRequired", {}).get(name, ()) for part in parts)
    return _required(parts).union(*depending)


def _patterns(schema: Schema) -> Mapping[str, Any]:
    patterns: Mapping[str, Any] = schema.get("patternProperties", {})
    return patterns


def _named_by(schemas: Iterable[Schema]) -> set[str]:
    return {name for schema in schemas for name in schema.get("properties", ())}


def _schemas_of_name(schemas: Iterable[Schema], name: str) -> list[Any]:
    """Returns all subschemas of these schemas that apply to the property `name`."""
    return [part for schema in schemas for part in _schemas_of_property(schema, name)]


def _schemas_of_property(schema: Schema, name: str) -> list[Any]:
    found = [s for pattern, s in _patterns(schema).items() if matches(pattern, name)]
    if name in schema.get("properties", {}):
        found.append(schema["properties"][name])
    return found or [schema.get("additionalProperties", True)]


def _schema_of_item(schema: Schema, index: int) -> Any:
    first = schema.get("prefixItems", [])
    return first[index] if index < len(first) else schema.get("items", True)


def _is_above(old: Schema, bound: Any, *, is_strict: bool) -> bool:
    at_least, above = old.get("minimum"), old.get("exclusiveMinimum")
    if above is not None and above >= bound:
        return True
    return at_least is not None and (at_least > bound if is_strict else at_least >= bound)


def _is_below(old: Schema, bound: Any, *, is_strict: bool) -> bool:
    at_most, below = old.get("maximum"), old.get("exclusiveMaximum")
    if below is not None and below <= bound:
        return True
    return at_most is not None and (at_most < bound if is_strict else at_most <= bound)


def _is_multiple(old: Schema, step: Any) -> bool:
    before = old.get("multipleOf", 1 if old.get("type") == "integer" else None)
    if before is None:
        return False
    whole = float(before).is_integer() and float(step).is_integer()
    return bool(before == step or (whole and before % step == 0))


_MEETS: Mapping[str, Callable[[Schema, Any], bool]] = {
    "minimum": lambda old, bound: _is_above(old, bound, is_strict=False),
    "exclusiveMinimum": lambda old, bound: _is_above(old, bound, is_strict=True),
    "maximum": lambda old, bound: _is_below(old, bound, is_strict=False),
    "exclusiveMaximum": lambda old, bound: _is_below(old, bound, is_strict=True),
    "multipleOf": _is_multiple,
    "pattern": lambda old, pattern: old.get("pattern") == pattern,
    "format": lambda old, name: old.get("format") == name,
    "uniqueItems": lambda old, wanted: not wanted or old.get("uniqueItems", False),
    "minLength": lambda old, least: old.get("minLength", 0) >= least,
    "minItems": lambda old, least: old.get("minItems", 0) >= least,
    "minProperties": lambda old, least: old.get("minProperties", 0) >= least,
    "maxLength": lambda old, most: old.get("maxLength", inf) <= most,
    "maxItems": lambda old, most: old.get("maxItems", inf) <= most,
    "maxProperties": lambda old, most: old.get("maxProperties", inf) <= most,
}
