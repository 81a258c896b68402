"""Packs lists of Python values as PostgreSQL arrays in binary format, for use as query parameters.

A statement receives one array for each column and unpacks the arrays to rows:

    cursor.execute("SELECT * FROM unnest(%(ids)s::text[])", {"ids": text_array(ids)})

psycopg's own text arrays are slow for thousands of rows, because psycopg searches each item for
characters that need quotes. The binary format needs no quotes. The cast (`::text[]`) is required,
because it tells PostgreSQL the type of the parameter. PostgreSQL raises an error if the array was
packed with another type.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct
from uuid import UUID

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = Struct("!iiIii").pack  # dimensions, whether NULLs are allowed, type, length, lower bound
_LENGTH = Struct("!i").pack
_NULL = _LENGTH(-1)
_FALSE_TRUE = (_LENGTH(1) + b"\0", _LENGTH(1) + b"\1")
_INT8 = Struct("!iq").pack
_INT4 = Struct("!ii").pack
_Y2K_MS = 946_684_800_000  # PostgreSQL counts microseconds since 2000


class Array(bytes):
    """A PostgreSQL array in binary format, ready to be sent as a query parameter."""


class _ArrayDumper(Dumper):
    """Tells psycopg to send the bytes of an `Array` unchanged, in binary format.

    The parameter is sent without a type, so the statement must cast it, for example with
    `::text[]`.
    """

    format = Format.BINARY

    def dump(self, obj: Array) -> Array:
        return obj


psycopg.adapters.register_dumper(Array, _ArrayDumper)


def _array(type: str, items: list[bytes]) -> Array:
    return Array(_HEADER(1, 1, psycopg.adapters.types[type].oid, len(items), 1) + b"".join(items))


def _of_any_length(type: str, values: Iterable[bytes | None]) -> Array:
    return _array(type, [_NULL if v is None else _LENGTH(len(v)) + v for v in values])


def text_array(values: Iterable[str]) -> Array:
    return _of_any_length("text", map(str.encode, values))


def optional_text_array(values: Iterable[str | None]) -> Array:
    return _of_any_length("text", [None if v is None else v.encode() for v in values])


def bytea_array(values: Iterable[bytes]) -> Array:
    return _of_any_length("bytea", values)


def json_array(values: Iterable[bytes | None]) -> Array:
    """Packs JSON documents as an array of the type `json`. The documents must be UTF-8 bytes.

    `None` becomes NULL.
    """
    return _of_any_length("json", values)


def uuid_array(values: Iterable[str | None]) -> Array:
    return _of_any_length("uuid", map(_uuid_bytes, values))


def bool_array(values: Iterable[bool]) -> Array:
    return _array("bool", [_FALSE_TRUE[v] for v in values])


def bigint_array(values: Iterable[int]) -> Array:
    return _array("int8", [_INT8(8, v) for v in values])


def integer_array(values: Iterable[int]) -> Array:
    return _array("int4", [_INT4(4, v) for v in values])


def time_array(values: Iterable[int | None]) -> Array:
    """Packs times as an array of the type `timestamptz`. The times are in ms since 1970 (UTC).

    `None` becomes NULL.
    """
    return _array(
        "timestamptz", [_NULL if ms is None else _INT8(8, (ms - _Y2K_MS) * 1_000) for ms in values]
    )


# A batch repeats the ids of a few devices.
@lru_cache(maxsize=10_000)
def _uuid_bytes(value: str | None) -> bytes | None:
    return None if value is None else UUID(value).bytes
