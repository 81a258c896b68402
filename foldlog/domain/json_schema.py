"""JSON Schema (draft 2020-12): checks the schemas of collections, and finds the violations of a
schema in a value.

An admin writes the schema, and any device may send values to check. This module therefore
guarantees:

* `$ref` always leads to `$defs` of the same schema, so other schemas are never loaded;
* patterns are matched in linear time;
* a schema that would apply itself endlessly to one value, or branch too often, is refused;
* the text about a violation contains parts of the schema only, because this text is stored with
  the refusal for ever, and values of records must be erasable.

Unknown keywords are refused, because a mistyped keyword would be ignored silently. Members named
`x-...` are allowed for notes.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import jsonschema_rs
import msgspec

from .errors import MESSAGE_LENGTH_MAX, InvalidSchema, LimitExceeded
from .json_pointers import escaped
from .limits import Limits
from .values import check_value

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: keywords that accept all values
ANNOTATIONS = words(
    "$schema $comment $defs title description default examples deprecated readOnly writeOnly"
)
#: keywords whose value is one schema, a list of schemas, or a map of schemas
ONE_SCHEMA = words(
    "additionalProperties propertyNames items contains not if then else "
    "unevaluatedItems unevaluatedProperties"
)
SCHEMA_LIST = words("allOf anyOf oneOf prefixItems")
SCHEMA_MAP = words("properties patternProperties dependentSchemas $defs")
#: all other keywords
OTHER_KEYWORDS = words(
    "$ref type enum const required pattern format minimum maximum exclusiveMinimum "
    "exclusiveMaximum multipleOf minLength maxLength minItems maxItems uniqueItems minContains "
    "maxContains minProperties maxProperties dependentRequired"
)
KEYWORDS = ANNOTATIONS | ONE_SCHEMA | SCHEMA_LIST | SCHEMA_MAP | OTHER_KEYWORDS
#: keywords whose schemas apply to the same value as the schema that contains them
IN_PLACE = words("allOf anyOf oneOf not if then else dependentSchemas")
FORMATS = words(
    "date-time date time duration email uuid uri uri-reference hostname ipv4 ipv6 json-pointer"
)

REF = "#/$defs/"
_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)  # these characters stay as they are in a reference
#: schemas that may apply to one value
IN_PLACE_MAX = 1_000
#: sets of schemas that may apply at different places of a value
PLACES_MAX = 5_000
#: of a compiled pattern; a larger one would take too much memory
PATTERN_BYTES_MAX = 2**20
#: of one document; more than these are ignored
VIOLATIONS_MAX = 1_000
VALUE_LENGTH_SHOWN_MAX = 100

Schema = Mapping[str, Any]
_encode = msgspec.json.encode


class Violation(msgspec.Struct, frozen=True):
    """A place where a value violates the schema, and the reason."""

    path: str  #: a JSON pointer; `*` replaces names that the schema lacks
    reason: str


class Fault(NamedTuple):
    """A violation, with data for comparing it with other violations. Two faults are the same
    violation if their `where`, `keyword` and `name` are equal."""

    where: tuple[str | int, ...]
    keyword: str
    name: str  #: of the missing property, or of the additional one
    violation: Violation


def compiled(schema: Schema) -> jsonschema_rs.Validator:
    """Compiles a schema to a validator. `schema` may also be a subschema to which the `$defs` of
    the whole schema were added. The caller must have checked the schema before."""
    return jsonschema_rs.Draft202012Validator(
        dict(schema),
        validate_formats=True,
        ignore_unknown_formats=False,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES_MAX),
        offline=True,
    )


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
            for _, part in _subschemas("", self.schema)
            for member in ("properties", "dependentSchemas", "dependentRequired", "required")
            for name in part.get(member, ())
        )

    def fits(self, value: Any) -> bool:
        return self._validator.is_valid(value)

    def faults(self, value: Any) -> Iterator[Fault]:
        """Yields the violations in a value, at most `VIOLATIONS_MAX`. Their texts contain only
        parts of the schema, and no values."""
        if self.fits(value):  # the usual case, ten times as fast
            return
        for error in islice(self._validator.iter_errors(value), VIOLATIONS_MAX):
            where = tuple(error.instance_path)
            path = "".join(
                f"/{part if isinstance(part, int) else self._shown_name(part)}" for part in where
            )
            violation = Violation(path, self._reason(error))
            for name in _names_of(error.kind):
                yield Fault(where, error.kind.name, name, violation)

    def _shown_name(self, name: str) -> str:
        return escaped(name) if name in self._names else "*"

    def _reason(self, error: jsonschema_rs.ValidationError) -> str:
        keyword = error.kind.name
        if keyword == "required":
            return f"lacks {error.kind.property}"  # type: ignore[attr-defined]
        if keyword in ("additionalProperties", "unevaluatedProperties", "falseSchema"):
            return "has a field that the schema does not allow"
        value: Any = self.schema
        try:
            for part in error.schema_path:
                value = value[part]
        except (KeyError, IndexError, TypeError):
            return f"does not fit {keyword}"
        text = _encode(value).decode()
        if len(text) > VALUE_LENGTH_SHOWN_MAX:
            text = text[:VALUE_LENGTH_SHOWN_MAX] + "..."
        return f"does not fit {keyword} {text}"


def _names_of(kind: Any) -> list[str]:
    return list(map(str, getattr(kind, "unexpected", [getattr(kind, "property", "")])))


def _subschemas(pointer: str, schema: Any) -> Iterator[tuple[str, Schema]]:
    """Yields the schema itself and all schemas inside it, each with its JSON pointer.

    Schemas that are just `true` or `false` are left out. The schema must be valid by the
    meta-schema.
    """
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for member, value in schema.items():
        below = f"{pointer}/{escaped(member)}"
        if member in ONE_SCHEMA:
            yield from _subschemas(below, value)
        elif member in SCHEMA_LIST:
            for index, item in enumerate(value):
                yield from _subschemas(f"{below}/{index}", item)
        elif member in SCHEMA_MAP:
            for name, item in value.items():
                yield from _subschemas(f"{below}/{escaped(name)}", item)


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
    for pointer, part in _subschemas("", schema):
        _check_part(pointer, part, schema.get("$defs", {}))
    kinds = schema.get("type", "object")
    if kinds != "object" and "object" not in kinds:
        raise InvalidSchema(
            "the schema must allow an object, because the fields of a record are one",
            pointer="/type",
        )
    _check_circles(schema)
    try:
        compiled(schema)
    except (jsonschema_rs.ValidationError, ValueError) as exc:
        raise _invalid(exc) from exc
    _check_branches(schema, limits.nesting_max + 1)


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


def name_of(ref: str) -> str:
    return ref.removeprefix(REF)


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

    for pointer, part in _subschemas("", schema):
        if weigh(part) > IN_PLACE_MAX:
            raise InvalidSchema(
                f"more than {IN_PLACE_MAX} schemas apply to one value", pointer=pointer
            )


def _check_branches(schema: Schema, levels: int) -> None:
    """Raises `InvalidSchema` if more than `IN_PLACE_MAX` subschemas may apply to one nested value,
    or if there are too many different sets of such subschemas. A check of a deeply nested value
    would then take too long.

    The function starts with the schemas that apply to the whole record. From them it computes the
    schemas that apply to each property and item, then those that apply one level deeper, and so on.
    It ends when a level gives no new set of schemas, or after `levels` levels.
    """
    definitions = schema.get("$defs", {})
    # A place is a set of (identity, times), because a schema may contain equal parts.
    parts: dict[int, Any] = {}  # by identity

    def applied(part: Any) -> Iterator[Schema]:
        if isinstance(part, dict):
            yield part
            for below in in_place(part):
                yield from applied(below)
            if "$ref" in part:
                yield from applied(definitions[name_of(part["$ref"])])

    def counted(found: Iterable[Any]) -> frozenset[tuple[int, int]]:
        found = list(found)
        parts.update((id(part), part) for part in found)
        return frozenset(Counter(map(id, found)).items())

    places = {counted([schema])}
    seen = set(places)
    for _ in range(levels):
        below = set()
        for place in places:
            here = [part for key, times in place for part in [*applied(parts[key])] * times]
            if len(here) > IN_PLACE_MAX or len(seen) > PLACES_MAX:
                raise InvalidSchema("branches too often at each level of a value", pointer="")
            below |= {counted(found) for found in _child_schemas(here)}
        places = below - seen
        seen |= places


def _child_schemas(parts: Sequence[Schema]) -> Iterator[list[Any]]:
    """Yields a list of subschemas for each kind of property and item that a value may have. `parts`
    are the schemas that apply to the value. The list for a property or item contains all subschemas
    of `parts` that apply to it. The last list contains the subschemas that apply to the names of
    the properties."""
    named = {name for part in parts for name in part.get("properties", ())}
    for name in named:
        by_name = partial(matches, name=name)
        yield [below for part in parts for below in _schemas_of_property(part, by_name, name)]
    for any_other in (_matches_none, _matches_all):
        yield [below for part in parts for below in _schemas_of_property(part, any_other)]
    length = max((len(part.get("prefixItems", ())) for part in parts), default=0)
    for index in range(length + 1):
        yield [below for part in parts for below in _schemas_of_item(part, index)]
    yield [part["propertyNames"] for part in parts if "propertyNames" in part]


def _matches_none(pattern: str) -> bool:
    return False


def _matches_all(pattern: str) -> bool:
    return True


def _schemas_of_property(
    part: Schema, is_matched: Callable[[str], bool], name: str | None = None
) -> Iterator[Any]:
    patterns: Mapping[str, Any] = part.get("patternProperties", {})
    found = [below for pattern, below in patterns.items() if is_matched(pattern)]
    if name in part.get("properties", {}):
        found.append(part["properties"][name])
    yield from found
    if not found and "additionalProperties" in part:
        yield part["additionalProperties"]
    if "unevaluatedProperties" in part:
        yield part["unevaluatedProperties"]


def _schemas_of_item(part: Schema, index: int) -> Iterator[Any]:
    first = part.get("prefixItems", ())
    if index < len(first):
        yield first[index]
    elif "items" in part:
        yield part["items"]
    yield from (part[k] for k in ("contains", "unevaluatedItems") if k in part)


@lru_cache(maxsize=1_024)
def matches(pattern: str, name: str) -> bool:
    return compiled({"pattern": pattern}).is_valid(name)


def in_place(part: Schema) -> Iterable[Any]:
    """Yields the schemas inside a schema that apply to the same value as the schema itself, such as
    those in `allOf`."""
    for member in part.keys() & IN_PLACE:
        value = part[member]
        if member in SCHEMA_LIST:
            yield from value
        elif member in SCHEMA_MAP:
            yield from value.values()
        else:
            yield value
