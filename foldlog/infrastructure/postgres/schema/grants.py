"""What the service's own role may do: as little as it needs.

The owner of the tables migrates. Everybody else (web workers, projectors, the signer, rebuilds,
imports, erasures) works as a service role that has what stands here, and so can read the log and
add to it, and nothing more; it owns nothing, and so can alter, drop and disable nothing. Given anew
after each migration, in one transaction, whatever was given before. A table without a rule here
fails a test. Whoever runs all of it as one role goes on as before, on triggers and REVOKE alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.postgres.master.projection import MasterProjection

_ADDS = "SELECT, INSERT"
_KEEPS = "SELECT, INSERT, UPDATE"
#: Of a projection: what a new generation takes the place of is deleted.
_REBUILDS = "SELECT, INSERT, UPDATE, DELETE"

#: table -> what the service may do with it; a new table has its rule here
PRIVILEGES: Mapping[str, str] = {
    "spaces": _KEEPS,
    "events": _ADDS,
    "erasures": _KEEPS,
    "skipped": _ADDS,
    "devices": _KEEPS,
    "tokens": _KEEPS,
    "collections": _ADDS,
    "projections": _REBUILDS,
    "records": _REBUILDS,
    "versions": "SELECT, INSERT, DELETE",
    "conflicts": "SELECT, INSERT, DELETE",
    "local_ids": "SELECT, INSERT, DELETE",
    "tiles": _REBUILDS,
    "checkpoints": _KEEPS,
    "schema_migrations": "SELECT",
}

#: What an erasure vacuums, so that no old rows stay behind. MAINTAIN changes no row, and is there
#: from PostgreSQL 17 on; before that the owner has to vacuum, or autovacuum does some day.
VACUUMED = ("events", *MasterProjection.tables)
MAINTAIN_SINCE = 17_00_00

#: Doors that are closed to everybody else. Through `erase_operations` passes what is proved to be
#: an erasure that the log tells of, whoever comes: so the service may, and no third role is needed.
FUNCTIONS = ("erase_operations",)

SELECT_PLACE = "SELECT current_database(), current_schema()"

SELECT_TOO_STRONG = """
SELECT s.rolsuper OR pg_has_role(s.oid, c.relowner, 'MEMBER')
  FROM pg_roles s
  JOIN pg_class c
    ON c.oid = 'events'::regclass
 WHERE s.rolname = %(role)s
"""


class UnfitRole(OperatorError):
    """The role that the service shall work as is not there, or may do more than the service."""

    code = "unfit-role"


def grant(url: str, role: str) -> None:
    """Gives this role what the service needs, and takes from it what it has besides.

    To be called as the owner of the tables. Raises `UnfitRole`.
    """
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        _check(cursor, role)
        to = Identifier(role)
        database, schema = cursor.execute(SELECT_PLACE).fetchone() or ("", "")
        cursor.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(schema), to))
        # A temporary table goes before one of ours of the same name.
        cursor.execute(
            SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(Identifier(database))
        )
        for table, privileges in PRIVILEGES.items():
            on = Identifier(table)
            cursor.execute(SQL("REVOKE ALL ON {} FROM {}").format(on, to))
            cursor.execute(SQL(f"GRANT {privileges} ON {{}} TO {{}}").format(on, to))
            if table in VACUUMED and conn.info.server_version >= MAINTAIN_SINCE:
                cursor.execute(SQL("GRANT MAINTAIN ON {} TO {}").format(on, to))
        for function in FUNCTIONS:
            cursor.execute(
                SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(Identifier(function), to)
            )


def _check(cursor: psycopg.Cursor[Any], role: str) -> None:
    found = cursor.execute(SELECT_TOO_STRONG, {"role": role}).fetchone()
    if found is None:
        raise UnfitRole(f"there is no role {role!r}: CREATE ROLE {role} LOGIN PASSWORD '...'")
    if found != (False,):
        raise UnfitRole(
            f"the role {role!r} is a superuser, or may act as the owner of the tables: it could "
            "change the log. The service needs one of its own"
        )
