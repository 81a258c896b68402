"""`python -m benchmarks`: starts the service, measures it, and prints a table of comparisons."""

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
from .cells import Measure, Row
from .chart import chart
from .errors import BenchmarkFailed, Skipped
from .figures import Figure, Result, Run
from .noise import quietly
from .rows import NAMES, chosen

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PUBLISHED = HERE / "published.json"
DOCS = HERE.parent / "docs" / "explanation"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[ROW]...")
@click.option("--quick", is_flag=True, help="A second a row: shows that the suite works.")
@click.option("--rounds", type=click.IntRange(min=1), help="[default: 3]")
@click.option("--events", type=click.IntRange(min=20_000), help="In the log of `growth`.")
@click.option("--publish", is_flag=True, help="Put the figures of these rows into the docs.")
def main(
    names: Sequence[str], quick: bool, rounds: int | None, events: int | None, publish: bool
) -> None:
    """Measure the named rows, or all short ones. See docs/explanation/benchmarks.md."""
    # SIGTERM unwinds the stack, so that the service stops too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scale = QUICK if quick else FULL
    scale = replace(scale, rounds=rounds or scale.rounds, grown=events or scale.grown)
    rows = chosen(names)
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
    """Measures all rows in each round, so that a slow phase of the machine affects all rows."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    results = [
        Result(
            row.name,
            row.title,
            row.unit,
            now,
            less_is_better=row.less_is_better,
            is_bare=row.is_bare,
        )
        for row in rows
    ]
    skipped: set[str] = set()
    for number in range(1, bench.scale.rounds + 1):
        # A limit that several rows share is measured once.
        limits: dict[Measure, Figure | None] = {}
        for row, result in zip(rows, results, strict=True):
            for title, limit in row.limits.items():
                if limit not in limits:
                    limits[limit] = _measured(bench, row, limit, number, title, skipped)
                if (figure := limits[limit]) is not None:
                    result.limits.setdefault(title, []).append(figure)
            if (own := _measured(bench, row, row.measure, number, row.title, skipped)) is not None:
                result.figures.append(own)
    return [result for result in results if result.figures]


def _measured(
    bench: Bench, row: Row, measure: Measure, number: int, title: str, skipped: set[str]
) -> Figure | None:
    try:
        if row.is_counted:
            figure = measure(bench)
        else:
            figure = quietly(lambda: measure(bench), bench.scale.tries)
    except Skipped as exc:
        if str(exc) not in skipped:
            click.echo(f"skipped  {title}: {exc}", err=True)
            skipped.add(str(exc))
        return None
    foreign = "" if figure.foreign is None else f"  (others: {figure.foreign:.0%})"
    click.echo(f"round {number}  {title}: {report.number(figure.value)} {foreign}", err=True)
    return figure


if __name__ == "__main__":
    main()
