"""Defines the interface of a projection: code that folds the events of a log into tables.

The projector and the rebuild use this interface. The master table and the proofs implement it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from psycopg import Cursor
from psycopg.generators import send


class GenerationCache(Protocol):
    """The part of a generation's rows that a projection keeps in memory between two batches.

    The cache is valid as long as the generation in the database is at `position`. This holds even
    if another worker moved the generation to that position, because the rows at a position depend
    only on the events of the log.
    """

    position: int
    bytes_uncommitted: int  #: written, and kept in memory until the transaction ends

    def reset(self, position: int) -> None:
        """Empties the cache and sets its position to that of the generation in the database."""

    def on_commit(self) -> None:
        """Removes rows from memory if there are too many. The caller must call this after each
        commit.
        """


C = TypeVar("C", bound=GenerationCache)


@dataclass(frozen=True)
class Generation(Generic[C]):
    """One generation of a projection in one space. The caller has locked its row in `projections`.

    The object holds the cursors and the cache with which a projection reads and writes its tables.
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
        """Executes a statement with the space and the generation added to its parameters.

        In pipeline mode this method returns before the result arrives.
        """
        self.cursor.execute(statement, {**self.params, **params}, prepare=True)
        # Flushes the rest of a large statement, which would stay in memory until the next call.
        connection = self.cursor.connection
        connection.wait(send(connection.pgconn))


class Projection(Protocol[C]):
    """Folds the events of a log into one generation of the projection's tables."""

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
        """Returns {table name: key columns}. The key columns are SQL text such as `collection, id`.

        The columns `space` and `generation` also belong to each key, and are left out here.
        """

    def new_cache(self, position: int, *, bytes_max: int = ...) -> C: ...

    def apply(self, to: Generation[C], rows: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Folds the rows of a page of events, and writes the results to the database in parts.

        `rows` are rows of `select_page`. The generator yields after each written part. At that
        moment `to.cache.position` is the seq of the part's last event, and the caller may stop the
        iteration.
        """
