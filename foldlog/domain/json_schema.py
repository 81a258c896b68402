"""JSON Schema (draft 2020-12): checks the schemas of collections, and finds the violations of a
schema in a value.

An admin writes the schema, and any device may send values to check. This module therefore
guarantees:

* `$ref` always leads to `$defs` of the same schema, so other schemas are never loaded;
* patterns are matched in linear time;
* a schema that would apply itself endlessly to one value, or branch too often, is refused;
* a check has a budget of steps, which are counted before it runs (`schema_steps`), and memory does
  not grow with the number of violations;
* the text about a violation contains parts of the schema only, because this text is stored with
  the refusal for ever, and values of records must be erasable.

Unknown keywords are refused, because a mistyped keyword would be ignored silently. Members named
`x-...` are allowed for notes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property, lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import jsonschema_rs
import msgspec

from .errors import MESSAGE_LENGTH_MAX, InvalidSchema, LimitExceeded
from .json_pointers import escaped
from .limits import Limits
from .schema_keywords import (
    ANNOTATIONS,
    BY_FIELD,
    FORMATS,
    KEYWORDS,
    REF,
    Schema,
    compiled,
    in_place,
    name_of,
    pattern_bytes,
    patterns_of,
    subschemas,
)
from .schema_steps import StepCounter
from .step_budget import Steps, TooManySteps
from .values import check_value

DIALECT = "https://json-schema.org/draft/2020-12/schema"


_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)  # these characters stay as they are in a reference
#: schemas that may apply to one value
IN_PLACE_MAX = 1_000
#: of one document; more than these are ignored
VIOLATIONS_MAX = 1_000
#: memory of all compiled patterns of a new schema together
PATTERNS_BYTES_MAX = 4 * 2**20
VALUE_LENGTH_SHOWN_MAX = 100
NOT_ALLOWED = "has a field that the schema does not allow"

#: steps of the search for violations: of each check, and of each byte of a schema to compile
SEARCH_STEPS = 60
COMPILING_STEPS = 4
PATTERN_BYTES_PER_STEP = 5
#: The search checks the halves of longer lists and objects before their members.
TOGETHER_MAX = 16
#: keywords that are checked together with another one
TOGETHER: Mapping[str, tuple[str, ...]] = {"contains": ("contains", "minContains", "maxContains")}
WITH_OTHERS = frozenset({"then", "else", "minContains", "maxContains"})

_encode = msgspec.json.encode


Place = tuple[str | int, ...]  #: of a value in a record


class Violation(msgspec.Struct, frozen=True):
    """A place where a value violates the schema, and the reason."""

    path: str  #: a JSON pointer; `*` replaces names that the schema lacks
    reason: str


class Fault(NamedTuple):
    """A violation, with data for comparing it with other violations. Two faults are the same
    violation if their `where`, `keyword` and `name` are equal."""

    where: Place
    keyword: str
    name: str  #: of the missing property, or of the additional one
    violation: Violation


class JsonSchema:
    """A schema that has been checked, with a validator for it."""

    def __init__(self, schema: Schema):
        self.schema = schema

    @classmethod
    def checked(cls, schema: Any, limits: Limits) -> JsonSchema:
        """Checks a schema and returns it as a `JsonSchema`. Raises `LimitExceeded` if the schema is
        too large. Raises `InvalidSchema`, with a `pointer` to the bad place, if it is invalid or
        unsupported."""
        _check(schema, limits)
        return cls(schema)

    @cached_property
    def digest(self) -> str:
        """Returns the SHA-256 of the schema in hex. Schemas that differ only in the order of their
        members have the same digest."""
        return hashlib.sha256(_encode(self.schema, order="sorted")).hexdigest()

    @cached_property
    def _validator(self) -> jsonschema_rs.Validator:
        return compiled(self.schema)

    @cached_property
    def _names(self) -> frozenset[str]:
        """Returns the names of all properties that the schema mentions. Messages may contain only
        these names, because all other names come from data that devices sent, which must be
        erasable."""
        return frozenset(
            name
            for _, part in subschemas("", self.schema)
            for member in ("properties", "dependentSchemas", "dependentRequired", "required")
            for name in part.get(member, ())
        )

    @cached_property
    def counter(self) -> StepCounter:
        """Counts the steps of checks against this schema."""
        return StepCounter(self.schema)

    def fits(self, value: Any, steps: Steps | None = None) -> bool:
        """Returns whether the value is valid. Spends the steps of the check first, and raises
        `TooManySteps` if too few are left. The default are the steps of one changeset."""
        steps = steps or Steps()
        steps.spend_counted(partial(self.counter.count, value))
        return self._validator.is_valid(value)

    def faults(self, value: Any, steps: Steps | None = None) -> Iterator[Fault]:
        """Yields the violations in an invalid value, at most `VIOLATIONS_MAX`. Their texts contain
        only parts of the schema, and no values.

        The search ends early if `steps` are used up. If it has found no violation in a part of the
        value that is invalid, it yields one that stands for the whole part.
        """
        return islice(
            _Search(self, steps or Steps()).faults(self.schema, value, ()), VIOLATIONS_MAX
        )

    def fault(self, where: Place, keyword: str, reason: str, name: str = "") -> Fault:
        path = "".join(
            f"/{part if isinstance(part, int) else self._shown_name(part)}" for part in where
        )
        return Fault(where, keyword, name, Violation(path, reason))

    def _shown_name(self, name: str) -> str:
        return escaped(name) if name in self._names else "*"


class _Search:
    """Searches an invalid value for its violations, within a budget of steps.

    The search only asks the validator whether a part of the value fits a part of the schema, and
    goes into the parts that do not fit. So it needs little memory for any number of violations.
    """

    def __init__(self, schema: JsonSchema, steps: Steps):
        self._fault = schema.fault
        self._counter = schema.counter
        self._steps = steps
        self._definitions = schema.schema.get("$defs", {})
        #: The parts of the whole value were counted together, when the whole value was checked.
        self._is_counted = True
        self._compiled: dict[tuple[int, Any], jsonschema_rs.Validator] = {}
        self._texts: dict[tuple[int, str], str] = {}

    def faults(self, part: Any, value: Any, where: Place) -> Iterator[Fault]:
        """Yields the violations of the subschema `part` in an invalid value. `where` is the place
        of the value in the record."""
        found = False
        try:
            for fault in self._faults(part, value, where):
                found = True
                yield fault
        except TooManySteps:
            pass
        if not found:
            yield self._fault(where, "", "does not fit the schema")

    def _faults(self, part: Any, value: Any, where: Place) -> Iterator[Fault]:
        if not isinstance(part, dict):
            yield self._fault(where, "falseSchema", NOT_ALLOWED)
            return
        for keyword, demand in part.items():
            if keyword in ANNOTATIONS or keyword in WITH_OTHERS or keyword not in KEYWORDS:
                continue
            if keyword in BY_FIELD:
                if keyword == next(name for name in part if name in BY_FIELD):
                    yield from self._members(part, value, where)
            elif keyword in ("prefixItems", "items"):
                if keyword == next(name for name in part if name in ("prefixItems", "items")):
                    yield from self._items(part, value, where)
            elif keyword in _FOLLOWED:
                yield from _FOLLOWED[keyword](self, part, value, where)
            elif keyword.startswith("unevaluated"):
                # It depends on all other members of the schema, and on all members of the value.
                if not self._fits(part, value):
                    reason = NOT_ALLOWED if demand is False else self._misfit(part, keyword)
                    members = sorted(value) if isinstance(value, dict) else len(value)
                    yield self._fault(where, keyword, reason, repr(members))
            else:
                alone = {k: part[k] for k in TOGETHER.get(keyword, (keyword,)) if k in part}
                if not self._fits_some(part, alone, value):
                    yield self._fault(where, keyword, self._misfit(part, keyword))

    def _below(self, part: Any, value: Any, where: Place) -> Iterator[Fault]:
        if not self._fits(part, value):
            was_counted, self._is_counted = self._is_counted, False
            yield from self.faults(part, value, where)
            self._is_counted = was_counted

    def _reference(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        yield from self._below(self._definitions[name_of(part["$ref"])], value, where)

    def _all_of(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        for branch in part["allOf"]:
            yield from self._below(branch, value, where)

    def _if(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        branch = "then" if self._fits(part["if"], value) else "else"
        yield from self._below(part.get(branch, True), value, where)

    def _dependent(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        for name, branch in part["dependentSchemas"].items():
            if isinstance(value, dict) and name in value:
                yield from self._below(branch, value, where)

    def _dependent_names(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        for name, required in part["dependentRequired"].items():
            if isinstance(value, dict) and name in value:
                yield from self._required({"required": required}, value, where)

    def _required(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        self._steps.spend(len(part["required"]))
        if isinstance(value, dict):
            for name in part["required"]:
                if name not in value:
                    yield self._fault(where, "required", f"lacks {name}", name)

    def _members(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        """Yields the violations of `properties`, `patternProperties` and `additionalProperties`,
        which apply to each member of an object separately."""
        if not isinstance(value, dict):
            return
        if len(value) > TOGETHER_MAX:
            self._is_counted = False  # each half is checked several times
            fields = {keyword: part[keyword] for keyword in BY_FIELD if keyword in part}
            for half in _halves(list(value.items())):
                members = dict(half)
                if not self._fits_some(part, fields, members):
                    yield from self._members(part, members, where)
            return
        for name, item in value.items():
            self._steps.spend(SEARCH_STEPS * (1 + len(part.get("patternProperties", ()))))
            by_name = partial(matches, name=name)
            named = list(_schemas_of_named(part, by_name, name))
            for below in named:
                yield from self._below(below, item, (*where, name))
            others = part.get("additionalProperties", True)
            if others is False and not named:
                yield self._fault(where, "additionalProperties", NOT_ALLOWED, name)
            elif not named:
                yield from self._below(others, item, (*where, name))

    def _items(self, part: Schema, value: Any, where: Place) -> Iterator[Fault]:
        """Yields the violations of `prefixItems` and `items`."""
        if not isinstance(value, list):
            return
        first = part.get("prefixItems", [])
        for index, (branch, item) in enumerate(zip(first, value, strict=False)):
            yield from self._below(branch, item, (*where, index))
        if "items" in part:
            yield from self._slice(part, value[len(first) :], where, len(first))

    def _slice(self, part: Schema, items: list[Any], where: Place, first: int) -> Iterator[Fault]:
        """Yields the violations of `items` in consecutive items of a list. `first` is the index of
        the first one."""
        below = part["items"]
        if len(items) > TOGETHER_MAX:
            for half in _halves(items):
                if not self._fit_items(part, half):
                    yield from self._slice(part, half, where, first)
                first += len(half)
            return
        for index, item in enumerate(items, first):
            yield from self._below(below, item, (*where, index))

    def _fits(self, part: Any, value: Any) -> bool:
        return part is True or self._fits_some(part, part, value)

    def _fits_some(self, part: Any, some: Any, value: Any) -> bool:
        """Returns whether the value fits `some` of the keywords of the subschema `part`. Spends the
        steps of the check first."""
        self._steps.spend(SEARCH_STEPS)
        if not self._is_counted:
            self._steps.spend_counted(partial(self._counter.count_of, part, value))
        return some is not False and self._validator(part, some).is_valid(value)

    def _fit_items(self, part: Schema, items: list[Any]) -> bool:
        """Returns whether all of these items fit the keyword `items` of `part`."""
        self._steps.spend(SEARCH_STEPS)
        self._steps.spend_counted(partial(self._counter.count_items, part["items"], items))
        return self._validator(part, {"items": part["items"]}).is_valid(items)

    def _validator(self, part: Schema, some: Schema) -> jsonschema_rs.Validator:
        """Compiles some keywords of the subschema `part`, once for this search."""
        key = id(part), tuple(some)
        found = self._compiled.get(key)
        if found is None:
            text = _encode(some)
            size = len(text)
            if b'"$ref"' in text and "$defs" not in some:
                some = {**some, "$defs": self._definitions}
                size += len(_encode(self._definitions))
            self._steps.spend(COMPILING_STEPS * size)
            patterns = (p for _, below in subschemas("", some) for p in patterns_of(below))
            self._steps.spend(sum(map(pattern_bytes, patterns)) // PATTERN_BYTES_PER_STEP)
            found = self._compiled[key] = compiled(some)
        return found

    def _misfit(self, part: Schema, keyword: str) -> str:
        key = id(part), keyword
        if key not in self._texts:
            text = _encode(part[keyword]).decode()
            if len(text) > VALUE_LENGTH_SHOWN_MAX:
                text = text[:VALUE_LENGTH_SHOWN_MAX] + "..."
            self._texts[key] = f"does not fit {keyword} {text}"
        return self._texts[key]


#: how the search goes on below each of these keywords; it looks at all others from outside
_FOLLOWED: Mapping[str, Callable[[_Search, Schema, Any, Place], Iterator[Fault]]] = {
    "$ref": _Search._reference,
    "allOf": _Search._all_of,
    "if": _Search._if,
    "dependentSchemas": _Search._dependent,
    "dependentRequired": _Search._dependent_names,
    "required": _Search._required,
}


def _halves(members: list[Any]) -> tuple[list[Any], list[Any]]:
    middle = len(members) // 2
    return members[:middle], members[middle:]


def _check(schema: Any, limits: Limits) -> None:
    if not isinstance(schema, dict):
        raise InvalidSchema("a collection's schema must be an object", pointer="")
    try:
        check_value(schema, limits.schema_nesting_max)
    except ValueError as exc:
        raise InvalidSchema(str(exc), pointer="") from exc
    if len(_encode(schema)) > limits.schema_bytes_max:
        raise LimitExceeded("schema_bytes_max", limits.schema_bytes_max)
    if schema.get("$schema", DIALECT) != DIALECT:
        raise InvalidSchema(f"the dialect must be {DIALECT}", pointer="/$schema")
    _check_by_meta_schema({name: value for name, value in schema.items() if name != "$schema"})
    for pointer, part in subschemas("", schema):
        _check_part(pointer, part, schema.get("$defs", {}))
    kinds = schema.get("type", "object")
    if kinds != "object" and "object" not in kinds:
        raise InvalidSchema(
            "the schema must allow an object, because the fields of a record are one",
            pointer="/type",
        )
    _check_circles(schema)
    _check_patterns(schema)
    try:
        compiled(schema)
    except (jsonschema_rs.ValidationError, ValueError) as exc:
        raise _invalid(exc) from exc
    _check_branches(schema)


def _check_by_meta_schema(schema: Schema) -> None:
    try:
        jsonschema_rs.meta.validate(dict(schema))
    except jsonschema_rs.ValidationError as exc:
        raise _invalid(exc) from exc


def _invalid(exc: Exception) -> InvalidSchema:
    path = getattr(exc, "instance_path", ())
    pointer = "".join(f"/{escaped(str(part))}" for part in path)
    message = getattr(exc, "message", str(exc))
    return InvalidSchema(message[:MESSAGE_LENGTH_MAX], pointer=pointer)


def _check_part(pointer: str, part: Schema, definitions: Mapping[str, Any]) -> None:
    for member, value in part.items():
        where = f"{pointer}/{escaped(member)}"
        if member not in KEYWORDS and not member.startswith("x-"):
            raise InvalidSchema(f"{member[:50]} is an unknown keyword", pointer=where)
        if member in ("$schema", "$defs") and pointer:
            raise InvalidSchema(f"{member} is allowed only at the top of the schema", pointer=where)
        if member == "$ref" and (not value.startswith(REF) or name_of(value) not in definitions):
            raise InvalidSchema(f"a $ref must lead to {REF}... in this schema", pointer=where)
        if member == "$defs" and not all(map(_NAME.fullmatch, value)):
            raise InvalidSchema("a name in $defs must consist of A-Z a-z 0-9 - _ .", pointer=where)
        if member == "format" and value not in FORMATS:
            raise InvalidSchema(
                f"a format must be one of {', '.join(sorted(FORMATS))}", pointer=where
            )


def _check_circles(schema: Schema) -> None:
    """Raises `InvalidSchema` if a schema leads back to itself for the same value, for example by
    `$ref`, because a check of a value would then never end. Also raises `InvalidSchema` if more
    than `IN_PLACE_MAX` schemas apply to the same value."""
    definitions = schema.get("$defs", {})
    under_way: set[str] = set()

    @cache
    def weight_of(name: str) -> int:
        if name in under_way:
            pointer = f"/$defs/{name}"
            raise InvalidSchema("applies itself to the same value endlessly", pointer=pointer)
        under_way.add(name)
        weight = weigh(definitions[name])
        under_way.remove(name)
        return weight

    def weigh(part: Any) -> int:
        if not isinstance(part, dict):
            return 1
        weight = 1 + sum(map(weigh, in_place(part)))
        return weight + (weight_of(name_of(part["$ref"])) if "$ref" in part else 0)

    for pointer, part in subschemas("", schema):
        if weigh(part) > IN_PLACE_MAX:
            raise InvalidSchema(
                f"more than {IN_PLACE_MAX} schemas apply to one value", pointer=pointer
            )


def _check_patterns(schema: Schema) -> None:
    """Raises `InvalidSchema` if the patterns of a schema together take more memory than
    `PATTERNS_BYTES_MAX`."""
    left = PATTERNS_BYTES_MAX
    for pointer, part in subschemas("", schema):
        for pattern in patterns_of(part):
            left -= pattern_bytes(pattern)
            if left < 0:
                raise InvalidSchema("the patterns take too much memory together", pointer=pointer)


def _check_branches(schema: Schema) -> None:
    """Raises `InvalidSchema` if more than `IN_PLACE_MAX` subschemas may apply to one nested value,
    or if there are too many different sets of such subschemas. A check of a deeply nested value
    would then take too long."""
    counter = StepCounter(schema)
    if not counter.is_whole or counter.parts_max > IN_PLACE_MAX:
        raise InvalidSchema("branches too often at each level of a value", pointer="")


def _schemas_of_named(
    part: Schema, is_matched: Callable[[str], bool], name: str | None = None
) -> Iterator[Any]:
    patterns: Mapping[str, Any] = part.get("patternProperties", {})
    yield from (below for pattern, below in patterns.items() if is_matched(pattern))
    if name in part.get("properties", {}):
        yield part["properties"][name]


@lru_cache(maxsize=4_096)
def matches(pattern: str, name: str) -> bool:
    return _matcher(pattern).is_valid(name)


@lru_cache(maxsize=1_024)
def _matcher(pattern: str) -> jsonschema_rs.Validator:
    return compiled({"pattern": pattern})
