"""Database errors, as the product understands them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from eventsourcing import persistence

from ...domain.errors import StorageUnavailable

#: The connection broke, or there was none: nothing is wrong with what was asked.
CONNECTION_ERRORS = (
    persistence.OperationalError,
    persistence.InterfaceError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
)


@contextmanager
def translated() -> Iterator[None]:
    """The database cannot be reached: the caller may try again later."""
    try:
        yield
    except CONNECTION_ERRORS as exc:
        raise StorageUnavailable() from exc
