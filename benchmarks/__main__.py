"""`python -m benchmarks`: starts the service, measures it, and says how it compares."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from . import report
from .bench import FULL, QUICK, Bench, running
from .cells import NAMES, ROWS, Measure, Row
from .chart import chart
from .errors import BenchmarkFailed
from .figures import Figure, Result, Run
from .noise import quietly

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PUBLISHED = HERE / "published.json"
DOCS = HERE.parent / "docs"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[ROW]...")
@click.option("--quick", is_flag=True, help="A second a row: shows that the suite works.")
@click.option("--rounds", type=click.IntRange(min=1), help="[default: 3]")
@click.option("--publish", is_flag=True, help="Put the figures of these rows into the docs.")
def main(names: Sequence[str], quick: bool, rounds: int | None, publish: bool) -> None:
    """Measure all rows, or those named: push1 push100 pull rebuild poll."""
    # Whoever ends us must not leave a service behind: this unwinds the stack.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scale = QUICK if quick else FULL
    scale = replace(scale, rounds=rounds or scale.rounds)
    rows = [row for row in ROWS if not names or row.name in names]
    with tempfile.TemporaryDirectory(prefix="foldlog-bench-") as folder:
        try:
            with running(scale, Path(folder)) as bench:
                run = Run(bench.machine(), measure(bench, rows))
        except BenchmarkFailed as exc:
            click.echo(f"failed: {exc}", err=True)
            sys.exit(1)
    click.echo(report.plain_table(run.results))
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    report.save(run, RESULTS / f"{stamp}.json")
    (RESULTS / f"{stamp}.svg").write_text(chart(run.results), "utf-8")
    if publish:
        if PUBLISHED.exists():
            run = report.merged(report.load(PUBLISHED), run)
        report.save(run, PUBLISHED)
        report.publish(run, DOCS / "benchmarks.md", DOCS / "benchmarks.svg")


def measure(bench: Bench, rows: Sequence[Row]) -> list[Result]:
    """Round by round, so that an hour's mood of the machine falls on all rows alike."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    results = [Result(row.name, row.title, row.unit, now) for row in rows]
    for number in range(1, bench.scale.rounds + 1):
        limits: dict[str, Figure] = {}
        for row, result in zip(rows, results, strict=True):
            for title, limit in row.limits.items():
                if title not in limits:
                    limits[title] = _measured(bench, limit, number, title)
                result.limits.setdefault(title, []).append(limits[title])
            result.figures.append(_measured(bench, row.measure, number, row.title))
    return results


def _measured(bench: Bench, measure: Measure, number: int, title: str) -> Figure:
    figure = quietly(lambda: measure(bench), bench.scale.tries)
    foreign = "" if figure.foreign is None else f"  (others: {figure.foreign:.0%})"
    click.echo(f"round {number}  {title}: {figure.rate:,.0f}/s{foreign}", err=True)
    return figure


if __name__ == "__main__":
    main()
