"""Grants the service's database role the privileges that the service needs.

The owner of the tables runs the migrations. Web workers, projectors, the signer, rebuilds, imports
and erasures use the service role, which can read the log and append to it. The service role owns no
table, so it cannot alter a table, drop it, or disable its triggers.

Call `grant` once for the role. The function replaces all earlier grants in one transaction. Later
migrations call `regrant`, so that the role gets the privileges of the new schema. If `PRIVILEGES`
lacks a table, a test fails. An installation can also use a single role for all tasks.
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
#: `{values}` are all columns outside of the primary key, so a row never moves to another key.
_UPDATE = "SELECT, INSERT, UPDATE ({values})"
#: for projections, because a rebuild deletes the rows of the old generation
_REBUILD = "SELECT, INSERT, UPDATE ({values}), DELETE"
#: A token can be granted, with its event, and revoked. The triggers of the table check it too.
_TOKENS = (
    "SELECT, "
    "INSERT (space, token, digest, role, device, name, granted_at_ms, granted_by, expires_at_ms), "
    "UPDATE (revoked_at_ms, revoked_by, revoked_reason)"
)
#: A code can be issued, and claimed once. A trigger of the table checks it too.
_ENROLMENTS = "SELECT, INSERT, UPDATE (device, digest)"
#: A generation keeps whether it has the history. Before its rows go, its version becomes 0.
_PROJECTIONS = (
    "SELECT, "
    "INSERT (space, projection, generation, is_live, fold_version), "
    "UPDATE (position, is_live, fold_version, stopped_at, stopped_why, stopped_until, "
    "failing_why, failing_since), "
    "DELETE"
)

#: After a rotation, the row of a folder gets the new key, which is in the primary key.
_SIGNERS = "SELECT, INSERT, UPDATE (key, {values})"

#: table -> the privileges of the service; columns where only columns change
PRIVILEGES: Mapping[str, str] = {
    "spaces": _UPDATE,
    "events": _APPEND,
    "erasures": _UPDATE,
    "skipped": _APPEND,
    "devices": _UPDATE,
    "tokens": _TOKENS,
    "enrolments": _ENROLMENTS,
    "collections": _APPEND,
    "removed_imports": "SELECT",
    "projections": _PROJECTIONS,
    "records": _REBUILD,
    "versions": "SELECT, INSERT, DELETE",
    "conflicts": "SELECT, INSERT, DELETE",
    "local_ids": "SELECT, INSERT, DELETE",
    "tiles": _REBUILD,
    "checkpoints": _UPDATE,
    "signers": _SIGNERS,
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

#: how many of the privileges in excess an error names
EXCESS_SHOWN = 5

SELECT_SCHEMA = "SELECT current_database(), current_schema()"

SELECT_VALUES = """
SELECT a.attname
  FROM pg_attribute a
  LEFT JOIN pg_index i
    ON i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY(i.indkey)
 WHERE a.attrelid = %(table)s::regclass
   AND a.attnum > 0
   AND NOT a.attisdropped
   AND i.indrelid IS NULL
 ORDER BY a.attnum
"""

# Both privileges together are those of a role that `grant` has prepared.
SELECT_SERVICES = """
SELECT r.rolname
  FROM pg_class c
  JOIN pg_proc f
    ON f.pronamespace = c.relnamespace AND f.proname = 'erase_operations'
 CROSS JOIN aclexplode(c.relacl) appends
  JOIN aclexplode(f.proacl) erases
    ON erases.grantee = appends.grantee
  JOIN pg_roles r
    ON r.oid = appends.grantee
 WHERE c.oid = 'events'::regclass
   AND appends.privilege_type = 'INSERT'
   AND r.oid <> c.relowner
 ORDER BY r.rolname
"""

# Membership counts also without inheritance, because of SET ROLE.
SELECT_TOO_STRONG = """
SELECT s.rolsuper
       OR s.rolcreaterole
       OR bool_or(pg_has_role(s.oid, stronger.oid, 'MEMBER'))
  FROM pg_roles s
  JOIN pg_class c
    ON c.oid = 'events'::regclass
  JOIN pg_namespace n
    ON n.oid = c.relnamespace
  JOIN pg_database d
    ON d.datname = current_database()
  JOIN pg_roles stronger
    ON stronger.oid IN (c.relowner, n.nspowner, d.datdba)
    OR stronger.rolname IN ('pg_write_all_data', 'pg_write_server_files',
                            'pg_execute_server_program')
 WHERE s.rolname = %(role)s
 GROUP BY s.oid, s.rolsuper, s.rolcreaterole
"""

# All that a role may do beyond its own grants: by a grant to PUBLIC, or to a role of which it is a
# member.
SELECT_EXCESS = """
SELECT privilege || ' on schema ' || current_schema()
  FROM unnest(ARRAY['CREATE']) AS privilege
 WHERE has_schema_privilege(%(role)s, current_schema(), privilege)
 UNION ALL
SELECT privilege || ' on database ' || current_database()
  FROM unnest(ARRAY['CREATE', 'TEMPORARY']) AS privilege
 WHERE has_database_privilege(%(role)s, current_database(), privilege)
 UNION ALL
SELECT privilege || ' on ' || c.relname
  FROM pg_class c
 CROSS JOIN unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER', 'REFERENCES']) AS privilege
 WHERE c.oid = ANY(%(tables)s::regclass[])
   AND has_table_privilege(%(role)s, c.oid, privilege)
   AND NOT EXISTS (SELECT
                     FROM aclexplode(c.relacl) own
                    WHERE own.grantee = %(role)s::regrole
                      AND own.privilege_type = privilege)
 UNION ALL
SELECT privilege || ' (' || a.attname || ') on ' || c.relname
  FROM pg_class c
  JOIN pg_attribute a
    ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE']) AS privilege
 WHERE c.oid = ANY(%(tables)s::regclass[])
   AND has_column_privilege(%(role)s, c.oid, a.attnum, privilege)
   AND NOT EXISTS (SELECT
                     FROM (SELECT * FROM aclexplode(c.relacl)
                            UNION ALL
                           SELECT * FROM aclexplode(a.attacl)) own
                    WHERE own.grantee = %(role)s::regrole
                      AND own.privilege_type = privilege)
 ORDER BY 1
"""


class UnfitRole(OperatorError):
    """The role of the service is missing, or has more privileges than the service needs."""

    code = "unfit-role"


def grant(url: str, role: str) -> None:
    """Grants a role the privileges that the service needs, and revokes its other table privileges.

    `url` must connect as the owner of the tables. Raises `UnfitRole` if the role does not exist,
    may act as a stronger role, or has further privileges by other roles. It then changes nothing.
    """
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        _check(cursor, role)
        _grant(cursor, role)
        _check_excess(cursor, role)


def regrant(url: str) -> list[str]:
    """Replaces the privileges of all roles that `grant` has prepared, and returns their names.

    `url` must connect as the owner of the tables. Roles that may act as the owner are left out.
    """
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        roles = [role for (role,) in cursor.execute(SELECT_SERVICES).fetchall()]
        fit = [role for role in roles if _is_fit(cursor, role)]
        for role in fit:
            _grant(cursor, role)
    return fit


def _grant(cursor: psycopg.Cursor[Any], role: str) -> None:
    to = Identifier(role)
    database, schema = cursor.execute(SELECT_SCHEMA).fetchone() or ("", "")
    cursor.execute(SQL("REVOKE ALL ON SCHEMA {} FROM {}").format(Identifier(schema), to))
    cursor.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(schema), to))
    # A function of the role could get between a trigger and the function that the trigger calls.
    cursor.execute(SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC").format(Identifier(schema)))
    # A temporary table would hide the service's table of the same name.
    cursor.execute(SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(Identifier(database)))
    for table, privileges in PRIVILEGES.items():
        on = Identifier(table)
        names = [name for (name,) in cursor.execute(SELECT_VALUES, {"table": table}).fetchall()]
        values = SQL(", ").join(map(Identifier, names))
        # This also revokes the privileges on columns.
        cursor.execute(SQL("REVOKE ALL ON {} FROM PUBLIC, {}").format(on, to))
        granted = SQL(privileges).format(values=values)
        cursor.execute(SQL("GRANT {} ON {} TO {}").format(granted, on, to))
        if table in VACUUMED and cursor.connection.info.server_version >= MAINTAIN_SINCE:
            cursor.execute(SQL("GRANT MAINTAIN ON {} TO {}").format(on, to))
    for function in FUNCTIONS:
        cursor.execute(SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(Identifier(function), to))


def _is_fit(cursor: psycopg.Cursor[Any], role: str) -> bool:
    return cursor.execute(SELECT_TOO_STRONG, {"role": role}).fetchone() == (False,)


def _check(cursor: psycopg.Cursor[Any], role: str) -> None:
    found = cursor.execute(SELECT_TOO_STRONG, {"role": role}).fetchone()
    if found is None:
        raise UnfitRole(f"there is no role {role!r}: CREATE ROLE {role} LOGIN PASSWORD '...'")
    if found != (False,):
        raise UnfitRole(
            f"the role {role!r} is a superuser, may create roles, or may act as the owner of the "
            "tables: it could change the log. The service needs a role of its own"
        )


def _check_excess(cursor: psycopg.Cursor[Any], role: str) -> None:
    params = {"role": role, "tables": list(PRIVILEGES)}
    if excess := [what for (what,) in cursor.execute(SELECT_EXCESS, params).fetchall()]:
        raise UnfitRole(
            f"the role {role!r} has more privileges than the service needs, from PUBLIC or from "
            f"another role: {', '.join(excess[:EXCESS_SHOWN])}. Revoke them there"
        )
