"""What a measurement comes to, and what is kept of a run."""

from __future__ import annotations

import statistics

import msgspec


class Figure(msgspec.Struct):
    """One measurement of one round."""

    value: float  #: in the unit of the row; most are a second
    #: share of the machine that others took meanwhile; `None` where that cannot be told
    foreign: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    generator_cpu: float | None = None  #: the load generator's share of one core
    missing: float | None = None  #: share of what was pushed that another system has not stored
    bytes_each: float | None = None
    #: after a push: until the master table had caught up
    catch_up_seconds: float | None = None
    #: resident memory of the web workers, afterwards
    workers_mb: float | None = None
    note: str = ""  #: how much there was of what a scale decides


def median(figures: list[Figure], name: str) -> float | None:
    """Of a member of the figures."""
    values = [getattr(figure, name) for figure in figures]
    return statistics.median(values) if values and None not in values else None


class Result(msgspec.Struct, omit_defaults=True):
    """A row of the table: its rounds, and what stands beside it, measured just before in each."""

    row: str
    title: str
    unit: str
    measured_at: str
    figures: list[Figure] = []
    limits: dict[str, list[Figure]] = {}
    less_is_better: bool = False
    is_bare: bool = True  #: beside it is a bare limit, not another system, nor another size

    @property
    def value(self) -> float:
        return statistics.median(figure.value for figure in self.figures)

    @property
    def spread(self) -> tuple[float, float]:
        values = [figure.value for figure in self.figures]
        return min(values), max(values)

    def ratio(self, limit: str) -> float | None:
        """To a limit of the same round: what slows the machine down slows both."""
        pairs = list(zip(self.figures, self.limits[limit], strict=True))
        if any(ours.value < 0 or bare.value <= 0 for ours, bare in pairs):
            return None  # what has arrived before it was acknowledged
        return statistics.median(ours.value / bare.value for ours, bare in pairs)

    @property
    def foreign(self) -> float:
        """The largest share of others in any of these figures."""
        of_limits = [figure for figures in self.limits.values() for figure in figures]
        return max((f.foreign or 0.0 for f in [*self.figures, *of_limits]), default=0.0)


class Run(msgspec.Struct):
    """A run, as it is written to a file."""

    machine: dict[str, str]
    results: list[Result]
