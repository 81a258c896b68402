"""Lists the keywords of JSON Schema (draft 2020-12) by what they contain, and compiles schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs

from .json_pointers import escaped

Schema = Mapping[str, Any]

#: of a compiled pattern; a larger one would take too much memory
PATTERN_BYTES_MAX = 2**20
#: of the states of one pattern that the engine remembers
PATTERN_CACHE_BYTES_MAX = 2**17

#: the beginning of each reference
REF = "#/$defs/"


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
#: keywords that apply to each member of an object separately
BY_FIELD = words("properties patternProperties additionalProperties")
FORMATS = words(
    "date-time date time duration email uuid uri uri-reference hostname ipv4 ipv6 json-pointer"
)


def name_of(ref: str) -> str:
    return ref.removeprefix(REF)


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


def subschemas(pointer: str, schema: Any) -> Iterator[tuple[str, Schema]]:
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
            yield from subschemas(below, value)
        elif member in SCHEMA_LIST:
            for index, item in enumerate(value):
                yield from subschemas(f"{below}/{index}", item)
        elif member in SCHEMA_MAP:
            for name, item in value.items():
                yield from subschemas(f"{below}/{escaped(name)}", item)


def compiled(schema: Schema) -> jsonschema_rs.Validator:
    """Compiles a schema to a validator. `schema` may also be a subschema to which the `$defs` of
    the whole schema were added. The caller must have checked the schema before."""
    return jsonschema_rs.Draft202012Validator(
        dict(schema),
        validate_formats=True,
        ignore_unknown_formats=False,
        pattern_options=jsonschema_rs.RegexOptions(
            size_limit=PATTERN_BYTES_MAX, dfa_size_limit=PATTERN_CACHE_BYTES_MAX
        ),
        offline=True,
    )


def patterns_of(part: Schema) -> Iterable[str]:
    """Yields the patterns of one schema, without those of the schemas inside it."""
    if "pattern" in part:
        yield part["pattern"]
    yield from part.get("patternProperties", ())


@lru_cache(maxsize=4_096)
def pattern_bytes(pattern: str) -> int:
    """Returns the memory that a compiled pattern takes, in bytes, rounded up to a power of two;
    more than `PATTERN_BYTES_MAX` if it cannot be compiled within this."""
    size = 1
    while size <= PATTERN_BYTES_MAX and not _fits_in(pattern, size):
        size = size * 2 if size >= 1024 else 1024
    return 0 if size == 1 else size


def _fits_in(pattern: str, size: int) -> bool:
    options = jsonschema_rs.RegexOptions(size_limit=size)
    try:
        jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=options)
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True
