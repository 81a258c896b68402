"""Grants the service's database role the privileges that the service needs.

The owner of the tables runs the migrations. Web workers, projectors, the signer, rebuilds, imports
and erasures use the service role, which can read the log and append to it. The service role owns no
table, so it cannot alter a table, drop it, or disable its triggers.

Call `grant` after each migration. The function replaces all earlier grants in one transaction. If
`PRIVILEGES` lacks a table, a test fails. An installation can also use a single role for all tasks.
Then only the triggers and the REVOKE in the schema protect the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from foldlog.domain.errors import OperatorError
from foldlog.infrastructure.postgres.master.projection import MasterProjection

_APPEND = "SELECT, INSERT"
_UPDATE = "SELECT, INSERT, UPDATE"
#: for projections, because a rebuild deletes the rows of the old generation
_REBUILD = "SELECT, INSERT, UPDATE, DELETE"

#: table -> the privileges of the service
PRIVILEGES: Mapping[str, str] = {
    "spaces": _UPDATE,
    "events": _APPEND,
    "erasures": _UPDATE,
    "skipped": _APPEND,
    "devices": _UPDATE,
    "tokens": _UPDATE,
    "collections": _APPEND,
    "removed_imports": "SELECT",
    "projections": _REBUILD,
    "records": _REBUILD,
    "versions": "SELECT, INSERT, DELETE",
    "conflicts": "SELECT, INSERT, DELETE",
    "local_ids": "SELECT, INSERT, DELETE",
    "tiles": _REBUILD,
    "checkpoints": _UPDATE,
    "signers": _UPDATE,
    "schema_migrations": "SELECT",
}

#: The tables that an erasure vacuums to remove the old rows. The privilege MAINTAIN exists from
#: PostgreSQL 17 on and cannot change rows. On older servers the owner or autovacuum must vacuum.
VACUUMED = ("events", *MasterProjection.tables)
MAINTAIN_SINCE = 17_00_00

#: Functions that are revoked from PUBLIC. The trigger on the log checks each call of
#: `erase_operations` against the log's events, and `remove_import` deletes only a space that is
#: being imported, so the service may call them.
FUNCTIONS = ("erase_operations", "remove_import")

SELECT_SCHEMA = "SELECT current_database(), current_schema()"

SELECT_TOO_STRONG = """
SELECT s.rolsuper OR pg_has_role(s.oid, c.relowner, 'MEMBER')
  FROM pg_roles s
  JOIN pg_class c
    ON c.oid = 'events'::regclass
 WHERE s.rolname = %(role)s
"""


class UnfitRole(OperatorError):
    """The role of the service is missing, or has more privileges than the service needs."""

    code = "unfit-role"


def grant(url: str, role: str) -> None:
    """Grants a role the privileges that the service needs, and revokes its other table privileges.

    `url` must connect as the owner of the tables. Raises `UnfitRole` if the role does not exist, is
    a superuser, or is a member of the owner's role.
    """
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        _check(cursor, role)
        to = Identifier(role)
        database, schema = cursor.execute(SELECT_SCHEMA).fetchone() or ("", "")
        cursor.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(schema), to))
        # A temporary table would hide the service's table of the same name.
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
            "change the log. The service needs a role of its own"
        )
