"""What a measurement comes to, and what is kept of a run."""

from __future__ import annotations

import statistics

import msgspec


class Figure(msgspec.Struct):
    """One measurement of one round."""

    rate: float  #: a second
    #: share of the machine that others took meanwhile; `None` where that cannot be told
    foreign: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    generator_cpu: float | None = None  #: the load generator's share of one core
    bytes_each: float | None = None
    #: after a push: until the master table had caught up
    catch_up_seconds: float | None = None


class Result(msgspec.Struct):
    """A row of the table: its rounds, and in each its bare limits, measured just before."""

    row: str
    title: str
    unit: str
    measured_at: str
    figures: list[Figure] = []
    limits: dict[str, list[Figure]] = {}

    @property
    def rate(self) -> float:
        return statistics.median(figure.rate for figure in self.figures)

    @property
    def spread(self) -> tuple[float, float]:
        rates = [figure.rate for figure in self.figures]
        return min(rates), max(rates)

    def ratio(self, limit: str) -> float:
        """To a limit of the same round: what slows the machine down slows both."""
        pairs = zip(self.figures, self.limits[limit], strict=True)
        return statistics.median(ours.rate / bare.rate for ours, bare in pairs)

    def median(self, name: str) -> float | None:
        """Of a member of the figures."""
        values = [getattr(figure, name) for figure in self.figures]
        return None if None in values else statistics.median(values)

    @property
    def foreign(self) -> float:
        """The largest share of others in any of these figures."""
        of_limits = [figure for figures in self.limits.values() for figure in figures]
        return max((f.foreign or 0.0 for f in [*self.figures, *of_limits]), default=0.0)


class Run(msgspec.Struct):
    """A run, as it is written to a file."""

    machine: dict[str, str]
    results: list[Result]
