"""Translates the filters of `Collection.query` to SQL conditions on the JSON column `fields`."""

from __future__ import annotations

import re
from typing import Any

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def json_path(name: str) -> str:
    """Returns the JSON path of the field `name`, for SQLite's JSON functions: for example
    `$.title` for the field `title`.

    Raises `ValueError` if the name contains a quote or a backslash.
    """
    if _PLAIN_NAME.fullmatch(name):
        return f"$.{name}"
    if '"' in name or "\\" in name:
        raise ValueError(f"a query cannot use the field {name!r}: its name has a quote")
    return f'$."{name}"'


def condition(name: str, value: Any) -> tuple[str, list[Any]]:
    """Returns an SQL condition, and the list of its parameters. The condition is true for a record
    in which the field `name` has the given value.

    Values are compared with their JSON type: `true` differs from 1. If `value` is a list, tuple or
    set, the field must have one of the values in it. `None` also matches a missing field. Raises
    `ValueError` for a value of another type, such as a `dict`.
    """
    path = json_path(name)
    if isinstance(value, list | tuple | set | frozenset):
        parts = [condition(name, item) for item in value]
        if not parts:
            return "0", []
        return "(" + " OR ".join(sql for sql, _ in parts) + ")", [p for _, ps in parts for p in ps]
    if value is None:
        return "coalesce(json_type(fields, ?), 'null') = 'null'", [path]
    if isinstance(value, bool):
        return "json_type(fields, ?) = ?", [path, "true" if value else "false"]
    if isinstance(value, int | float):
        types = "('integer', 'real')"
    elif isinstance(value, str):
        types = "('text')"
    else:
        raise ValueError(f"a query cannot compare a field with a {type(value).__name__}")
    sql = f"(json_type(fields, ?) IN {types} AND json_extract(fields, ?) = ?)"
    return sql, [path, path, value]
