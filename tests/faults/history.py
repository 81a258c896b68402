"""The requests of clients and their answers, with times."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One request. Its `status` is 0 if the answer is missing."""

    space: str
    began: float
    ended: float
    status: int
    code: str = ""  #: of the problem
    retry_after: str | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, kw_only=True)
class Push(Attempt):
    device: str
    ids: tuple[str, ...]
    verdicts: tuple[tuple[str, int], ...] = ()  #: id and seq of each acknowledged changeset


@dataclass(frozen=True, kw_only=True)
class Read(Attempt):
    """A page of the log after `after`, or of the master table (`after` is -1)."""

    reader: str
    after: int = -1
    head: int = 0
    through: int = 0  #: `projected`, of the master table
    events: tuple[tuple[int, str], ...] = ()
    records: tuple[tuple[str, int], ...] = ()  #: id and seq of each record of the master table


@dataclass
class History:
    attempts: list[Attempt] = field(default_factory=list)  #: all threads append to it
    granted: set[str] = field(default_factory=set)  #: ids of events that the service made

    @property
    def pushes(self) -> list[Push]:
        return [attempt for attempt in self.attempts if isinstance(attempt, Push)]

    @property
    def reads(self) -> list[Read]:
        return [attempt for attempt in self.attempts if isinstance(attempt, Read)]
