"""Defines the interface of a projection: code that folds the events of a log into tables.

The projector and the rebuild call this interface. The projections `master` and `proofs` implement
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from psycopg import Cursor
from psycopg.generators import send


class GenerationCache(Protocol):
    """Keeps a part of a generation's rows in memory between two batches of a projection.

    The cached rows are correct if the `position` of the cache equals the position that the database
    stores for the generation. This is true even if another worker has projected the last events,
    because the rows at a position depend only on the events of the log.
    """

    position: int
    bytes_uncommitted: int  #: written, and kept in memory until the transaction ends

    def reset(self, position: int) -> None:
        """Empties the cache, and sets the position of the cache to `position`.

        The caller must pass the position that the database stores for the generation, which is the
        seq of the last event that was projected to it.
        """

    def on_commit(self) -> None:
        """Removes rows from memory if the cache is too large. Call this after each commit."""


C = TypeVar("C", bound=GenerationCache)


@dataclass(frozen=True)
class Generation(Generic[C]):
    """One generation of a projection in one space, with the objects that are needed to fill it.

    These objects are two database cursors and a cache of rows. The caller must have locked the
    generation's row in the table `projections`.
    """

    space: str
    number: int
    cursor: Cursor[Any]  #: in the transaction that holds the lock
    #: for reading: `cursor`, or one of another connection, which can read while `cursor` writes
    reader: Cursor[Any]
    cache: C

    @property
    def params(self) -> dict[str, Any]:
        return {"space": self.space, "generation": self.number}

    def send(self, statement: str, params: Mapping[str, Any]) -> None:
        """Runs an SQL statement with `params` and the parameters `space` and `generation`.

        In pipeline mode this method returns before the result arrives.
        """
        self.cursor.execute(statement, {**self.params, **params}, prepare=True)
        # Flushes the rest of a large statement, which would stay in memory until the next call.
        connection = self.cursor.connection
        connection.wait(send(connection.pgconn))


class Projection(Protocol[C]):
    """The interface of a projection, which folds the events of a log into tables."""

    #: the name in the table `projections`, which is permanent
    name: str
    #: the version of the code that fills the tables; other versions' generations need a rebuild
    version: int
    #: the statement of a page of events: the seq, then the columns that `apply` reads
    select_page: str
    #: The pause between two batches of a space. Longer pauses make larger but later batches.
    pause_seconds: float

    @property
    def tables(self) -> Mapping[str, str]:
        """Returns {table name: key columns} for the tables that the projection fills.

        The key columns are SQL text such as `collection, id`. Each key also has the columns `space`
        and `generation`, but this text does not name them.
        """

    def new_cache(self, position: int, *, bytes_max: int = ...) -> C: ...

    def apply(self, to: Generation[C], rows: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Folds a page of events, and writes the resulting rows to the generation `to` in parts.

        `rows` are rows of the statement `select_page`. The generator yields after it has written a
        part, and the caller may stop the iteration there. At that moment `to.cache.position` is the
        seq of the last event of the part.
        """
