"""JSON Schema (draft 2020-12): which schemas a collection may have, and what does not fit one.

A schema comes from an admin, what it is held against from anybody. So nothing is ever fetched
(`$ref` leads to the schema's own `$defs`), patterns are of a kind that is matched in linear time,
nothing goes in circles, and what is said of a value that does not fit is made of the schema alone:
it is stored with a refusal, which can never be erased. A keyword that is mistyped would check
nothing, so unknown ones are refused; `x-...` is free for notes.
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

from .errors import InvalidSchema, LimitExceeded
from .limits import Limits
from .values import check_value

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: keywords that say nothing about which values fit
ANNOTATIONS = words(
    "$schema $comment $defs title description default examples deprecated readOnly writeOnly"
)
#: keywords whose value is a schema, a list of schemas, schemas by name
OF_ONE = words(
    "additionalProperties propertyNames items contains not if then else "
    "unevaluatedItems unevaluatedProperties"
)
OF_MANY = words("allOf anyOf oneOf prefixItems")
BY_NAME = words("properties patternProperties dependentSchemas $defs")
#: the others
PLAIN = words(
    "$ref type enum const required pattern format minimum maximum exclusiveMinimum "
    "exclusiveMaximum multipleOf minLength maxLength minItems maxItems uniqueItems minContains "
    "maxContains minProperties maxProperties dependentRequired"
)
KEYWORDS = ANNOTATIONS | OF_ONE | OF_MANY | BY_NAME | PLAIN
#: keywords that look at the same value as the schema that they are in
IN_PLACE = words("allOf anyOf oneOf not if then else dependentSchemas")
FORMATS = words(
    "date-time date time duration email uuid uri uri-reference hostname ipv4 ipv6 json-pointer"
)

REF = "#/$defs/"
_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)  # means the same in a reference
#: schemas that one value may be held against at one place
IN_PLACE_MAX = 1_000
#: places in a value that are told apart by the schemas that they are held against
PLACES_MAX = 5_000
#: of a compiled pattern; what is larger would be refused by its memory, not by its time
PATTERN_BYTES_MAX = 2**20
#: of one document; a list of a million wrong items is wrong enough
VIOLATIONS_MAX = 1_000
VALUE_LENGTH_TOLD_MAX = 100
MESSAGE_LENGTH_MAX = 300

Schema = Mapping[str, Any]
_encode = msgspec.json.encode


class Violation(msgspec.Struct, frozen=True):
    """Where a document does not fit, and what of the schema it does not fit."""

    path: str  #: a JSON pointer; names that the schema does not have are told as `*`
    reason: str


class Fault(NamedTuple):
    """A violation, with what tells it from the others of its document."""

    where: tuple[str | int, ...]
    keyword: str
    name: str  #: of the property that is missing, or one too many
    violation: Violation


def compiled(schema: Schema) -> jsonschema_rs.Validator:
    """A validator of a checked schema, or of a part of one with its `$defs`."""
    return jsonschema_rs.Draft202012Validator(
        dict(schema),
        validate_formats=True,
        ignore_unknown_formats=False,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES_MAX),
        offline=True,
    )


class JsonSchema:
    """A schema that was checked."""

    def __init__(self, schema: Schema):
        self.schema = schema

    @classmethod
    def checked(cls, schema: Any, limits: Limits) -> JsonSchema:
        """Raises `InvalidSchema` with a `pointer` into the schema, or `LimitExceeded`."""
        _check(schema, limits)
        return cls(schema)

    @cached_property
    def digest(self) -> str:
        """The same for the same schema, in whichever order its members are written."""
        return hashlib.sha256(_encode(self.schema, order="sorted")).hexdigest()

    @cached_property
    def _validator(self) -> jsonschema_rs.Validator:
        return compiled(self.schema)

    @cached_property
    def _names(self) -> frozenset[str]:
        """Every name of a property that the schema has itself, and that so may be told."""
        return frozenset(
            name
            for _, part in _parts("", self.schema)
            for member in ("properties", "dependentSchemas", "dependentRequired")
            for name in part.get(member, ())
        ) | frozenset(n for _, part in _parts("", self.schema) for n in part.get("required", ()))

    def fits(self, value: Any) -> bool:
        return self._validator.is_valid(value)

    def faults(self, value: Any) -> Iterator[Fault]:
        """What does not fit; each is told without any of the value."""
        if self.fits(value):  # as nearly always, and told ten times as fast
            return
        for error in islice(self._validator.iter_errors(value), VIOLATIONS_MAX):
            where = tuple(error.instance_path)
            told = "".join(
                f"/{part if isinstance(part, int) else self._told(part)}" for part in where
            )
            violation = Violation(told, self._reason(error))
            for name in _names_of(error.kind):
                yield Fault(where, error.kind.name, name, violation)

    def _told(self, name: str) -> str:
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
        if len(text) > VALUE_LENGTH_TOLD_MAX:
            text = text[:VALUE_LENGTH_TOLD_MAX] + "..."
        return f"does not fit {keyword} {text}"


def _names_of(kind: Any) -> list[str]:
    return list(map(str, getattr(kind, "unexpected", [getattr(kind, "property", "")])))


def escaped(name: str) -> str:
    """RFC 6901."""
    return name.replace("~", "~0").replace("/", "~1")


def _parts(pointer: str, schema: Any) -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema, that one first, with its pointer. `true` and `false` are left out.

    Of a schema that fits the meta-schema, or nothing can be said of its members.
    """
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for member, value in schema.items():
        below = f"{pointer}/{escaped(member)}"
        if member in OF_ONE:
            yield from _parts(below, value)
        elif member in OF_MANY:
            for index, item in enumerate(value):
                yield from _parts(f"{below}/{index}", item)
        elif member in BY_NAME:
            for name, item in value.items():
                yield from _parts(f"{below}/{escaped(name)}", item)


def _check(schema: Any, limits: Limits) -> None:
    if not isinstance(schema, dict):
        raise InvalidSchema("a collection's schema is an object", pointer="")
    try:
        check_value(schema, limits.schema_nesting_max)
    except ValueError as exc:
        raise InvalidSchema(str(exc), pointer="") from exc
    if len(_encode(schema)) > limits.schema_bytes_max:
        raise LimitExceeded("schema_bytes_max", limits.schema_bytes_max)
    if schema.get("$schema", DIALECT) != DIALECT:
        raise InvalidSchema(f"the dialect is {DIALECT}", pointer="/$schema")
    _check_by_meta_schema({name: value for name, value in schema.items() if name != "$schema"})
    for pointer, part in _parts("", schema):
        _check_part(pointer, part, schema.get("$defs", {}))
    kinds = schema.get("type", "object")
    if kinds != "object" and "object" not in kinds:
        raise InvalidSchema("the fields of a record are an object", pointer="/type")
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
            raise InvalidSchema(f"{member[:50]} is no keyword that is checked", pointer=where)
        if member in ("$schema", "$defs") and pointer:
            raise InvalidSchema(f"{member} stands at the top", pointer=where)
        if member == "$ref" and (not value.startswith(REF) or name_of(value) not in definitions):
            raise InvalidSchema(f"a $ref leads to {REF}..., in this schema", pointer=where)
        if member == "$defs" and not all(map(_NAME.fullmatch, value)):
            raise InvalidSchema("a name in $defs is of A-Z a-z 0-9 - _ .", pointer=where)
        if member == "format" and value not in FORMATS:
            raise InvalidSchema(f"a format is one of {', '.join(sorted(FORMATS))}", pointer=where)


def name_of(ref: str) -> str:
    return ref.removeprefix(REF)


def _check_circles(schema: Schema) -> None:
    """A schema that leads to itself at the same value would never end, nor many that branch."""
    definitions = schema.get("$defs", {})
    under_way: set[str] = set()

    @cache
    def weight_of(name: str) -> int:
        if name in under_way:
            pointer = f"/$defs/{name}"
            raise InvalidSchema("leads to itself without going down into a value", pointer=pointer)
        under_way.add(name)
        weight = weigh(definitions[name])
        under_way.remove(name)
        return weight

    def weigh(part: Any) -> int:
        if not isinstance(part, dict):
            return 1
        weight = 1 + sum(map(weigh, in_place(part)))
        return weight + (weight_of(name_of(part["$ref"])) if "$ref" in part else 0)

    for pointer, part in _parts("", schema):
        if weigh(part) > IN_PLACE_MAX:
            raise InvalidSchema(f"more than {IN_PLACE_MAX} schemas of one value", pointer=pointer)


def _check_branches(schema: Schema, levels: int) -> None:
    """The same for what is deep in a value: schemas that branch there double with each level.

    Goes down as a value does, from all schemas that one place is held against to all that one
    place below it is, until nothing new is met.
    """
    definitions = schema.get("$defs", {})
    parts: dict[int, Any] = {}  # by identity: a schema may have the same part twice

    def at_once(part: Any) -> Iterator[Schema]:
        if isinstance(part, dict):
            yield part
            for below in in_place(part):
                yield from at_once(below)
            if "$ref" in part:
                yield from at_once(definitions[name_of(part["$ref"])])

    def counted(found: Iterable[Any]) -> frozenset[tuple[int, int]]:
        found = list(found)
        parts.update((id(part), part) for part in found)
        return frozenset(Counter(map(id, found)).items())

    level = {counted([schema])}
    seen = set(level)
    for _ in range(levels):
        below = set()
        for place in level:
            here = [part for which, times in place for part in [*at_once(parts[which])] * times]
            if len(here) > IN_PLACE_MAX or len(seen) > PLACES_MAX:
                raise InvalidSchema("branches again and again on the way down", pointer="")
            below |= {counted(found) for found in _below(here)}
        level = below - seen
        seen |= level


def _below(parts: Sequence[Schema]) -> Iterator[list[Any]]:
    """What each property, and each item, is held against: told apart by name and by place."""
    named = {name for part in parts for name in part.get("properties", ())}
    for name in named:
        by_name = partial(matches, name=name)
        yield [below for part in parts for below in _of_property(part, by_name, name)]
    for any_other in (_by_none, _by_all):
        yield [below for part in parts for below in _of_property(part, any_other)]
    length = max((len(part.get("prefixItems", ())) for part in parts), default=0)
    for index in range(length + 1):
        yield [below for part in parts for below in _of_item(part, index)]
    yield [part["propertyNames"] for part in parts if "propertyNames" in part]


def _by_none(pattern: str) -> bool:
    return False


def _by_all(pattern: str) -> bool:
    return True


def _of_property(
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


def _of_item(part: Schema, index: int) -> Iterator[Any]:
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
    """The schemas in a schema that look at the same value."""
    for member in part.keys() & IN_PLACE:
        value = part[member]
        if member in OF_MANY:
            yield from value
        elif member in BY_NAME:
            yield from value.values()
        else:
            yield value
