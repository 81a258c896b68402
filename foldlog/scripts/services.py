"""Opens the database that the options of a command name, and creates the objects that read and
write this database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.conninfo import conninfo_to_dict

from foldlog.infrastructure.settings import Settings, read_settings
from foldlog.infrastructure.wiring import Database, Services, database, services

from .console import quiet_logs


@contextmanager
def open_services(
    data: str | None, database_url: str | None, *, keys: str | None = None, migrates: bool = False
) -> Iterator[Services]:
    """Opens the database of `--data` or `--database-url` while the `with` block runs.

    The block gets the objects that read and write the database, in a `Services`. If the database
    has an older schema, the schema is upgraded first if `migrates` is true; otherwise the function
    raises `SchemaBehind`.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url, keys=keys)
    with open_database(settings, migrates=migrates) as db, services(db.url, settings) as parts:
        yield parts


@contextmanager
def open_database(settings: Settings, *, migrates: bool = False) -> Iterator[Database]:
    """Opens the database while the `with` block runs. Each error that leaves the block names the
    database.
    """
    with naming_the_database(settings), database(settings, migrates=migrates) as db:
        yield db


@contextmanager
def naming_the_database(settings: Settings) -> Iterator[None]:
    """Adds a note to each error that leaves the `with` block. The note names the data folder, or
    the server and the database, so that the user sees at once if an option or a variable is wrong.
    """
    try:
        yield
    except Exception as exc:
        exc.add_note(_named(settings))
        raise


def _named(settings: Settings) -> str:
    if settings.database_url is None:
        return f"data folder: {settings.data.absolute()}"
    # The other parts of the URL may hold secrets.
    parts = conninfo_to_dict(settings.database_url)
    shown = (
        f"{name}={parts[name]}" for name in ("host", "port", "dbname", "user") if name in parts
    )
    return f"database: {' '.join(shown)}"
