"""Opens the database that the options of a command name, and creates the objects that read and
write this database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foldlog.infrastructure.settings import read_settings
from foldlog.infrastructure.wiring import Services, database, services

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
    with database(settings, migrates=migrates) as db, services(db.url, settings) as parts:
        yield parts
