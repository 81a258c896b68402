"""Arrays in PostgreSQL's binary format keep their values."""

from __future__ import annotations

import pytest
from eventsourcing.persistence import ProgrammingError

from foldlog.domain.times import format_time, parse_time, to_ms
from foldlog.infrastructure.postgres.connection import arrays
from tests.helpers import A, B

TIMES = [
    "1969-12-31T23:59:59.999Z",
    "2000-01-01T00:00:00.000Z",
    "2026-11-23T09:00:00.123Z",
    "9999-12-31T23:59:59.999Z",
]


@pytest.mark.parametrize(
    ("made", "type", "values"),
    [
        (arrays.text_array, "text", ["", "NULL", 'a "quoted" {b}, \\', "ünï\U0001f600", " "]),
        (arrays.json_array, "json", [b'{"nul":"\\u0000", "b":1.0}', None, b"[]"]),
        (arrays.uuid_array, "uuid", [A, None, B, A]),
        (arrays.bool_array, "boolean", [True, False, True]),
        (arrays.bigint_array, "bigint", [0, -1, 2**53 - 1, 2**63 - 1]),
        (arrays.integer_array, "integer", [0, -1, 2**31 - 1]),
    ],
)
def test_an_array_comes_back_as_it_was(datastore, made, type, values):
    """All values return in their order. An empty array returns zero rows."""
    statement = f"SELECT * FROM unnest(%s::{type}[])"
    with datastore.rows() as cursor:
        found = [item for (item,) in cursor.execute(statement, [made(values)])]
        assert [str(item) if type == "uuid" and item else item for item in found] == values
        assert cursor.execute(statement, [made([])]).fetchall() == []


def test_times_keep_their_milliseconds(datastore):
    with datastore.rows() as cursor:
        given = arrays.time_array([None, *map(parse_time, TIMES)])
        found = cursor.execute("SELECT * FROM unnest(%s::timestamptz[])", [given]).fetchall()
    assert found[0] == (None,)
    assert [format_time(to_ms(at)) for (at,) in found[1:]] == TIMES


def test_an_array_of_another_type_is_refused(datastore):
    """A wrong cast raises an error instead of reading wrong values."""
    with pytest.raises(ProgrammingError, match="type"), datastore.rows() as cursor:
        cursor.execute("SELECT * FROM unnest(%s::text[])", [arrays.bigint_array([1])])
