"""What a projection is to whoever drives it: the projector, and a rebuild."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from psycopg import Cursor
from psycopg.generators import send


class Memory(Protocol):
    """What a projection keeps of a generation between two batches, so that it need not be read.

    Right as long as the generation is at `position`, whoever brought it there.
    """

    position: int
    bytes_uncommitted: int  #: that were written, and are kept until the transaction ends

    def forget(self, position: int) -> None:
        """Begins anew, at a position."""

    def committed(self) -> None: ...


M = TypeVar("M", bound=Memory)


@dataclass(frozen=True)
class Generation(Generic[M]):
    """A generation that is written to by who has it locked."""

    space: str
    number: int
    cursor: Cursor[Any]  #: in the transaction that has the lock
    #: for what is only read: the same, or one of another connection, which need not wait for the
    #: writing to be done
    reader: Cursor[Any]
    known: M

    @property
    def names(self) -> dict[str, Any]:
        return {"space": self.space, "generation": self.number}

    def send(self, statement: str, names: Mapping[str, Any]) -> None:
        """Executes a statement; in pipeline mode, without waiting for what comes of it."""
        self.cursor.execute(statement, {**self.names, **names}, prepare=True)
        # Or else the end of it would stay in our memory until we turn to PostgreSQL again.
        connection = self.cursor.connection
        connection.wait(send(connection.pgconn))


class Projection(Protocol[M]):
    """Folds events into one generation of its tables."""

    #: as in `projections`, for ever
    name: str
    #: of the code that fills it: what another version filled is rebuilt, not gone on with
    version: int
    #: what it reads of each event, after the seq
    columns: str
    #: so long it may rest between two turns of a space: what nobody waits for comes in batches
    pause_seconds: float

    @property
    def tables(self) -> Mapping[str, str]:
        """What a generation consists of, each with the columns by which its rows are told apart."""

    def memory(self, position: int, *, bytes_max: int = ...) -> M: ...

    def apply(self, to: Generation[M], rows: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Writes what these events make, each a row of its seq and `columns`, part by part.

        Yields after each part, with `to.known` at its last seq: who has had enough goes no further.
        """
