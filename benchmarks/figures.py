"""The figures of measurements, and the stored form of a run."""

from __future__ import annotations

import statistics

import msgspec


class Figure(msgspec.Struct):
    """One measurement in one round."""

    value: float  #: in the unit of the row, mostly per second
    #: share of the machine that other processes took; `None` if unknown
    foreign: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    generator_cpu: float | None = None  #: the load generator's share of one core
    missing: float | None = None  #: share of the pushed changesets that another system lost
    bytes_each: float | None = None
    #: seconds from a push until the master table had caught up
    catch_up_seconds: float | None = None
    #: resident memory of the web workers after the measurement
    workers_mb: float | None = None
    note: str = ""  #: the amount of data, for rows whose scale varies


def median(figures: list[Figure], name: str) -> float | None:
    """The median of one member of the figures."""
    values = [getattr(figure, name) for figure in figures]
    return statistics.median(values) if values and None not in values else None


class Result(msgspec.Struct, omit_defaults=True):
    """A row of the table: a figure of each round, and the comparisons measured just before."""

    row: str
    title: str
    unit: str
    measured_at: str
    figures: list[Figure] = []
    limits: dict[str, list[Figure]] = {}
    less_is_better: bool = False
    is_bare: bool = True  #: the comparison is a bare limit; otherwise another system or size

    @property
    def value(self) -> float:
        return statistics.median(figure.value for figure in self.figures)

    @property
    def spread(self) -> tuple[float, float]:
        values = [figure.value for figure in self.figures]
        return min(values), max(values)

    def ratio(self, limit: str) -> float | None:
        """The ratio to a limit of the same round, because a slow machine slows both."""
        pairs = list(zip(self.figures, self.limits[limit], strict=True))
        if any(ours.value < 0 or bare.value <= 0 for ours, bare in pairs):
            return None  # an event can arrive before its acknowledgement
        return statistics.median(ours.value / bare.value for ours, bare in pairs)

    @property
    def foreign(self) -> float:
        """The largest share of other processes in these figures."""
        of_limits = [figure for figures in self.limits.values() for figure in figures]
        return max((f.foreign or 0.0 for f in [*self.figures, *of_limits]), default=0.0)


class Run(msgspec.Struct):
    """A run in its stored form."""

    machine: dict[str, str]
    results: list[Result]
