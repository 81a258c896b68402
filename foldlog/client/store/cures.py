"""Says which value of an operation cannot be stored, and what to store instead."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

import msgspec

from foldlog.client.record import Record
from foldlog.domain.changesets import Operation
from foldlog.domain.limits import Limits
from foldlog.domain.values import type_of_plain

#: the expression to store instead of a value `{0}` of these types. The first match counts.
_CURES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((enum.Enum,), "{0}.value"),
    ((datetime, date, time), "{0}.isoformat()"),
    ((timedelta,), "{0}.total_seconds()"),
    ((UUID, Decimal, PurePath, complex), "str({0})"),
    ((bytes, bytearray, memoryview), "base64.b64encode({0}).decode()"),
    ((set, frozenset), "sorted({0})"),
    ((Record,), "{0}.id"),
    ((msgspec.Struct,), "msgspec.to_builtins({0})"),
    ((bool, int), "int({0})"),
    ((float,), "float({0})"),
    ((str,), "str({0})"),
    ((Mapping,), "dict({0})"),
    ((tuple, list), "list({0})"),
)
#: the most characters of a place in an error
_PLACE_LENGTH_MAX = 100


def reason(op: Operation, limits: Limits) -> str | None:
    """Returns a sentence about the first value of `op` that cannot be stored, with the name of its
    field and the cure. Returns `None` if every value can be stored, so the fault is elsewhere.
    """
    fields = op.fields if isinstance(op.fields, dict) else {}
    for name, value in fields.items():
        if not isinstance(name, str):
            return f"the field name {name!r} is a {type(name).__name__}: use a text"
        if len(name) > limits.field_name_length_max:
            return f"the field name `{_short(ascii(name)[1:-1])}` has {len(name)} characters"
        place = ascii(name)[1:-1]
        if _is_broken(name):
            return f"the field name `{_short(place)}` has half a surrogate pair: store whole text"
        found = _reason(place, value, limits.nesting_max, limits.integer_max)
        if found is not None:
            return found
    return None


def _reason(place: str, value: Any, levels: int, integer_max: int) -> str | None:
    """Returns a sentence about the first invalid value in `value`. `levels` is the number of levels
    that a list or a dict may still have.
    """
    kind, shown = type(value), _short(place)
    if kind is str and _is_broken(value):
        cure = f"{shown}.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        return f"`{shown}` has half a surrogate pair, which is no text; store `{cure}`"
    if kind in type_of_plain:
        return None
    if kind is int:
        is_too_large = not -integer_max <= value <= integer_max
        return (
            f"`{shown}` is an integer beyond {integer_max}; store `str({shown})`"
            if is_too_large
            else None
        )
    if kind is float:
        if math.isfinite(value):
            return None
        return f"`{shown}` is {value}, and a number must be finite; store `None`"
    if kind not in (list, dict):
        return f"`{shown}` is a {kind.__name__}; {_cure(shown, value)}"
    if levels <= 0:
        return f"`{shown}` is nested too deeply; store `json.dumps(...)` of the inner value"
    items = value.items() if kind is dict else enumerate(value)
    for key, item in items:
        if _is_broken(key):
            return f"`{shown}` has a name with half a surrogate pair: store whole text"
        found = _reason(f"{place}[{key!a}]", item, levels - 1, integer_max)
        if found is not None:
            return found
    return None


def _cure(place: str, value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, Record):
        return f"store `dataclasses.asdict({place})`"
    for types, cure in _CURES:
        if isinstance(value, types):
            return f"store `{cure.format(place)}`"
    return "store a JSON value: None, bool, int, float, str, list or dict"


def _is_broken(text: Any) -> bool:
    if not isinstance(text, str) or text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _short(place: str) -> str:
    return place if len(place) <= _PLACE_LENGTH_MAX else f"{place[:_PLACE_LENGTH_MAX]}..."
