"""JSON values: checks whether a value is valid, counts its size, compares two values, and adds
numbers."""

from __future__ import annotations

import math
from typing import Any, Protocol

from .limits import INTEGER_MAX

type_of_plain = (str, bool, type(None))

#: The value of a missing field. `None` is an ordinary value: JSON null.
ABSENT: Any = type("Absent", (), {"__repr__": lambda _: "ABSENT", "__bool__": lambda _: False})()


class LoggedValue:
    """A large value that stays in the log, and is read from there only when it is needed.

    It is the value of the field `name` in operation `op`, counted from 0, of event `seq`. `size` is
    its size as `size_of` counts it. While its event is in memory, it has the value itself, until
    `release` is called.
    """

    __slots__ = ("_source", "_value", "name", "op", "seq", "size")

    def __init__(
        self, source: ValueSource, seq: int, op: int, name: str, size: int, value: Any = ABSENT
    ):
        self.seq = seq
        self.op = op
        self.name = name
        self.size = size
        self._source = source
        self._value = value

    def load(self) -> Any:
        """Returns the value: a decoded JSON value. It is read from the log if it was released."""
        return self._source.load(self) if self._value is ABSENT else self._value

    def release(self) -> None:
        """Frees the memory of the value."""
        self._value = ABSENT

    def is_same(self, other: Any) -> bool:
        """Returns whether the other value, which may be `ABSENT`, is equal. Two values of different
        sizes are different, so most comparisons need no read."""
        if other is ABSENT or size_of(other) != self.size:
            return False
        if type(other) is LoggedValue:
            is_one = (self.seq, self.op, self.name) == (other.seq, other.op, other.name)
            return is_one or same(self.load(), other.load())
        return same(self.load(), other)


class ValueSource(Protocol):
    """Reads values from a log."""

    def load(self, value: LoggedValue, /) -> Any: ...


def size_of(value: Any) -> int:
    """Returns the size of a JSON value, as the limit of a record counts it. The size is the same
    number in every language.

    `null`, `true`, `false` and a number have the size 4. A string has 4 and its bytes in UTF-8. An
    array has 4 and the sizes of its items. An object has 4, and for each member 4, the bytes of its
    name in UTF-8 and the size of its value.
    """
    kind = type(value)
    if kind is str:
        return 4 + (len(value) if value.isascii() else utf8_length(value))
    if kind is list:
        return 4 + sum(map(size_of, value))
    if kind is dict:
        return 4 + sum(4 + utf8_length(name) + size_of(item) for name, item in value.items())
    if kind is LoggedValue:
        return int(value.size)
    return 4


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def same(a: Any, b: Any) -> bool:
    """Returns whether two JSON values are equal. `true` differs from 1, while 1 equals 1.0. The
    order of an object's members is ignored."""
    kind = type(a)
    if kind is LoggedValue:
        return bool(a.is_same(b))
    if type(b) is LoggedValue:
        return b.is_same(a)
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
