"""Migrates a database to the schema that this version of Foldlog needs.

If the database is empty, the module runs `schema.sql`. If an older version of Foldlog made the
schema, the module runs the missing migrations, each in its own transaction. A test checks that both
ways lead to the same schema.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg

from foldlog.domain.errors import OperatorError

_SQL = files(__package__)
#: An advisory lock lets one of several starting services migrate. The number is "fold" in ASCII.
_LOCK = 0x666F6C64


Rows = psycopg.Cursor[tuple[Any, ...]]


class UnknownSchema(OperatorError):
    """A newer version of Foldlog has migrated the database, so this version cannot use it."""

    code = "unknown-schema"


class SchemaBehind(OperatorError):
    """The schema of the database is older than the schema that this version of Foldlog needs."""

    code = "schema-behind"


class NotUTF8(OperatorError):
    """The encoding of the database must be UTF8, because Foldlog stores text in all languages."""

    code = "not-utf8"


def migrations() -> dict[str, str]:
    """Returns {name: SQL text} of all migrations, in the order in which they must be applied."""
    found = (_SQL / "migrations").iterdir()
    return {
        path.name.removesuffix(".sql"): path.read_text("utf-8")
        for path in sorted(found, key=lambda path: path.name)
        if path.name.endswith(".sql")
    }


def migrate(url: str, *, from_scratch: bool = True) -> list[str]:
    """Migrates the database, and returns the names of the migrations that were applied.

    If the database is empty, the function runs `schema.sql`, and returns the names of all
    migrations. With `from_scratch=False` it runs all migrations instead.

    Raises `NotUTF8` if the database has another encoding than UTF8. Raises `UnknownSchema` if a
    newer version of Foldlog has migrated the database. Raises `SchemaBehind` if migrations are
    missing but the role in the URL does not own the tables.
    """
    known = migrations()
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        if conn.info.parameter_status("server_encoding") != "UTF8":
            raise NotUTF8
        applied = _applied(cursor)
        if unknown := applied - known.keys():
            raise UnknownSchema(
                f"a newer version has applied migrations to this database: "
                f"{', '.join(sorted(unknown))}. Use that version."
            )
        missing = [name for name in known if name not in applied]
        if missing and applied and not _is_owner(cursor):
            raise SchemaBehind(
                f"the database lacks {', '.join(missing)}, and {conn.info.user!r} does not own its "
                "tables. Run `foldlog migrate` as their owner."
            )
        if missing and not applied and from_scratch:
            with conn.transaction():
                cursor.execute((_SQL / "schema.sql").read_bytes())
                for name in missing:
                    _insert(cursor, name)
            return missing
        for name in missing:
            with conn.transaction():
                cursor.execute(known[name].encode())
                _insert(cursor, name)
        return missing


def pending(cursor: Rows) -> list[str]:
    """Returns the names of the migrations that must still be applied to this database."""
    applied = _applied(cursor)
    return [name for name in migrations() if name not in applied]


def _applied(cursor: Rows) -> set[str]:
    cursor.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
    if not any(there for (there,) in cursor.fetchall()):
        return set()
    return {str(name) for (name,) in cursor.execute("SELECT name FROM schema_migrations")}


def _is_owner(cursor: Rows) -> bool:
    cursor.execute(
        "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'events'::regclass"
    )
    return cursor.fetchone() == (True,)


def _insert(cursor: Rows, name: str) -> None:
    cursor.execute("INSERT INTO schema_migrations (name) VALUES (%s)", (name,))
