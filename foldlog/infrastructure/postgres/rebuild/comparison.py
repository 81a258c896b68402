"""Compares the rows of two generations of a projection.

A rebuild with `verify=True` uses this to compare the new generation with the live one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import Cursor
from psycopg.sql import SQL, Identifier

# The first row, in the order of keys, that only one of the two generations has.
COMPARE = """
SELECT to_json(t)::text, in_live
  FROM (
       (SELECT {columns}, true AS in_live FROM {table}
         WHERE space = %(space)s AND generation = %(live)s
        EXCEPT ALL
        SELECT {columns}, true FROM {table}
         WHERE space = %(space)s AND generation = %(rebuilt)s)
       UNION ALL
       (SELECT {columns}, false FROM {table}
         WHERE space = %(space)s AND generation = %(rebuilt)s
        EXCEPT ALL
        SELECT {columns}, false FROM {table}
         WHERE space = %(space)s AND generation = %(live)s)
       ) t
 ORDER BY {key}, in_live DESC
 LIMIT 1
"""

SELECT_COLUMNS = """
SELECT column_name, data_type
  FROM information_schema.columns
 WHERE table_schema = current_schema()
   AND table_name = %(table)s
   AND column_name NOT IN ('space', 'generation')
 ORDER BY ordinal_position
"""


@dataclass(frozen=True)
class Difference:
    """A row that only one of the two compared generations has.

    `row` is the row as JSON text. `is_in_live` is `True` if the live generation has the row.
    """

    table: str
    row: str
    is_in_live: bool


def first_difference(
    cursor: Cursor[Any], tables: Mapping[str, str], space: str, live: int, rebuilt: int
) -> Difference | None:
    """Returns the first row that only one of two generations has, or `None` if all rows are equal.

    `tables` is {table name: key columns}. `live` and `rebuilt` are the numbers of the generations.
    """
    for table, key in tables.items():
        columns = [
            # The type json has no equality. Its text is stored as we wrote it, so it is comparable.
            SQL("{0}::text AS {0}" if type == "json" else "{0}").format(Identifier(name))
            for name, type in cursor.execute(SELECT_COLUMNS, {"table": table}).fetchall()
        ]
        statement = SQL(COMPARE).format(
            columns=SQL(", ").join(columns), table=Identifier(table), key=SQL(key)
        )
        params = {"space": space, "live": live, "rebuilt": rebuilt}
        found = cursor.execute(statement, params).fetchone()
        if found is not None:
            return Difference(table, found[0], found[1])
    return None
