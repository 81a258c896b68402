"""Brings a database to this version's schema.

A new database gets `schema.sql` at once; an older one the migrations that it lacks, each in a
transaction of its own. A test holds that both ways lead to the same schema.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg

from foldlog.domain.errors import OperatorError

_SQL = files(__package__)
#: Two services that start at once must not both migrate. "fold" in ASCII.
_LOCK = 0x666F6C64


Rows = psycopg.Cursor[tuple[Any, ...]]


class UnknownSchema(OperatorError):
    """The database was migrated by a newer Foldlog than this one."""

    code = "unknown-schema"


class SchemaBehind(OperatorError):
    """The database has an older schema than this version needs."""

    code = "schema-behind"


class NotUTF8(OperatorError):
    """The database must be encoded in UTF8: it keeps what users write in all languages."""

    code = "not-utf8"


def migrations() -> dict[str, str]:
    """Name -> SQL, in the order in which they apply."""
    found = (_SQL / "migrations").iterdir()
    return {
        path.name.removesuffix(".sql"): path.read_text("utf-8")
        for path in sorted(found, key=lambda path: path.name)
        if path.name.endswith(".sql")
    }


def migrate(url: str, *, from_scratch: bool = True) -> list[str]:
    """Migrates the database, and returns the names of the migrations that it lacked.

    `from_scratch=False` builds a new database by its migrations too, as the test does.
    """
    known = migrations()
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        if conn.info.parameter_status("server_encoding") != "UTF8":
            raise NotUTF8
        applied = _applied(cursor)
        if unknown := applied - known.keys():
            raise UnknownSchema(
                f"the database has migrations that this version does not know: "
                f"{', '.join(sorted(unknown))}. Use the newer version."
            )
        missing = [name for name in known if name not in applied]
        if missing and applied and not _is_owner(cursor):
            raise SchemaBehind(
                f"the database lacks {', '.join(missing)}, and {conn.info.user!r} does not own its "
                "tables: foldlog migrate, as their owner"
            )
        if missing and not applied and from_scratch:
            with conn.transaction():
                cursor.execute((_SQL / "schema.sql").read_bytes())
                for name in missing:
                    _note(cursor, name)
            return missing
        for name in missing:
            with conn.transaction():
                cursor.execute(known[name].encode())
                _note(cursor, name)
        return missing


def pending(cursor: Rows) -> list[str]:
    """The migrations that the database still lacks."""
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


def _note(cursor: Rows, name: str) -> None:
    cursor.execute("INSERT INTO schema_migrations (name) VALUES (%s)", (name,))
