"""Decodes JSON that contains values of records. Every number costs about the same time.

msgspec needs 8 to 25 µs for a number such as `5e-324`, because it computes some exponents digit by
digit. A body of 500,000 such numbers would take seconds. `float` needs less than 2 µs for any
number, and both round to the same value.

A number that no double can hold, such as `1e400`, is a `msgspec.ValidationError`, as it is in
msgspec.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:  # infinite
        raise ValueError("Number out of range")
    return value


@overload
def decoder(type: type[T]) -> msgspec.json.Decoder[T]: ...
@overload
def decoder(type: Any = Any) -> msgspec.json.Decoder[Any]: ...
def decoder(type: Any = Any) -> msgspec.json.Decoder[Any]:
    """Returns a decoder for this type. It concerns values of the type `Any`, which are those of
    records."""
    return msgspec.json.Decoder(type, float_hook=_finite)


#: decodes a value of any type
decode_value = decoder().decode


def values_max_in(json: bytes | bytearray) -> int:
    """Returns a bound of the number of values in this JSON, without parsing it.

    The function counts commas and opening brackets, because each value but the first follows one of
    them. It also counts those within texts, so the JSON may have fewer values.
    """
    return sum(json.count(sign) for sign in b",[{")
