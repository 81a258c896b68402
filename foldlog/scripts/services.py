"""Opening the service's parts for a command, on the database that its options name."""

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
    """Opens the parts on the database of `--data` or `--database-url` during the block.

    `migrates` brings an older schema to this version's first; otherwise it is refused.
    """
    quiet_logs()
    settings = read_settings(data=data, database_url=database_url, keys=keys)
    with database(settings, migrates=migrates) as db, services(db.url, settings) as parts:
        yield parts
