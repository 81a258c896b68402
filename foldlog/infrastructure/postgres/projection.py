"""The interface of a projection for its two drivers: the projector and a rebuild."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from psycopg import Cursor
from psycopg.generators import send


class GenerationCache(Protocol):
    """The rows of a generation that a projection keeps in memory between two batches.

    The cache is valid while the generation is at `position`, because the rows at a position follow
    from the log alone. It stays valid if another worker has brought the generation there.
    """

    position: int
    bytes_uncommitted: int  #: written, and kept in memory until the transaction ends

    def reset(self, position: int) -> None:
        """Empties the cache, for a generation at `position`."""

    def on_commit(self) -> None:
        """Frees memory after the transaction has committed."""


C = TypeVar("C", bound=GenerationCache)


@dataclass(frozen=True)
class Generation(Generic[C]):
    """A generation that the caller has locked for writing."""

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
        """Executes a statement. In pipeline mode this returns before the result arrives."""
        self.cursor.execute(statement, {**self.params, **params}, prepare=True)
        # Flushes the rest of a large statement, which would stay in memory until the next call.
        connection = self.cursor.connection
        connection.wait(send(connection.pgconn))


class Projection(Protocol[C]):
    """Folds events into one generation of its tables."""

    #: the name in the table `projections`, which is permanent
    name: str
    #: of the code that fills it; a generation of another version must be rebuilt
    version: int
    #: the statement of a page of events: the seq, then the columns that `apply` reads
    select_page: str
    #: The pause between two batches of a space. A pause joins events whose readers can wait.
    pause_seconds: float

    @property
    def tables(self) -> Mapping[str, str]:
        """Returns {table: the columns of its key}, without space and generation."""

    def new_cache(self, position: int, *, bytes_max: int = ...) -> C: ...

    def apply(self, to: Generation[C], rows: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Folds rows of `select_page` and writes the result in parts.

        Yields after each part, with `to.cache.position` at the last seq of that part. The caller
        may stop there.
        """
