"""JSON values: checks whether a value is valid, compares two values, and adds numbers."""

from __future__ import annotations

import math
from typing import Any

from .limits import INTEGER_MAX

type_of_plain = (str, bool, type(None))

#: The value of a missing field. `None` is an ordinary value: JSON null.
ABSENT: Any = type("Absent", (), {"__repr__": lambda _: "ABSENT", "__bool__": lambda _: False})()


def same(a: Any, b: Any) -> bool:
    """Returns whether two JSON values are equal. `true` differs from 1, while 1 equals 1.0. The
    order of an object's members is ignored."""
    kind = type(a)
    if kind is bool or type(b) is bool:
        return a is b
    if kind is list:
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    if kind is dict:
        return (
            type(b) is dict and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
        )
    return bool(a == b)


class OverLimit(ValueError):
    """Raised for a value that exceeds a published limit. `limit` is the name of the limit."""

    def __init__(self, limit: str, message: str):
        super().__init__(message)
        self.limit = limit


def check_value(value: Any, nesting_max: int) -> None:
    """Checks a decoded JSON value. A valid value is one that every JSON reader decodes to the same
    value.

    Raises `OverLimit` for an integer beyond ±(2^53-1), and for a value that is nested more than
    `nesting_max` levels deep. Raises `ValueError` for an infinite number, NaN, or a type that JSON
    lacks.
    """
    kind = type(value)
    if kind in type_of_plain:
        return
    if kind is int:
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise OverLimit("integer_max", "an integer beyond 2^53-1; send it as a string")
    elif kind is float:
        if not math.isfinite(value):
            raise ValueError("a number must be finite")
    elif nesting_max <= 0:
        raise OverLimit("nesting_max", "nested too deeply")
    elif kind is list:
        for item in value:
            check_value(item, nesting_max - 1)
    elif kind is dict:
        for item in value.values():
            check_value(item, nesting_max - 1)
    else:
        raise ValueError(f"the type {kind.__name__} is invalid in JSON")


def is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def sum_of(a: int | float, b: int | float) -> int | float | None:
    """Returns the sum of two numbers as IEEE 754 doubles, or `None` if the sum is infinite.

    A whole result is returned as an int (1 + 1 is 2, never 2.0), so that all replicas write the
    same bytes.
    """
    total = float(a) + float(b)
    if not math.isfinite(total):
        return None
    if total.is_integer() and abs(total) <= INTEGER_MAX:
        return int(total)
    return total
