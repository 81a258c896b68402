"""A run as a table for a terminal, as one for a document, and as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from .chart import chart
from .figures import Result, Run
from .noise import FOREIGN_SHARE_MAX

HEADINGS = ("what", "median", "spread", "p50 / p99 ms", "bare limit beside it", "ratio", "more")
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def lines_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A line for each bare limit; what is the same as in the line above is left out."""
    lines: list[tuple[str, ...]] = []
    for result in results:
        own = _own(result)
        for limit, figures in result.limits.items():
            beside = f"{limit}: {_number(Result('', '', '', '', figures).rate)}"
            lines.append((*own[:4], beside, f"{result.ratio(limit):.0%}", own[4]))
            own = ("",) * 5
    return lines


def _own(result: Result) -> tuple[str, ...]:
    low, high = result.spread
    p50, p99 = result.median("p50_ms"), result.median("p99_ms")
    noisy = " *" if result.foreign > FOREIGN_SHARE_MAX else ""
    more = []
    if (size := result.median("bytes_each")) is not None:
        more.append(f"{size:.0f} bytes an event")
    if (seconds := result.median("catch_up_seconds")) is not None:
        more.append(f"master table {seconds:.1f} s behind")
    if (cpu := result.median("generator_cpu")) is not None:
        more.append(f"generator {cpu:.0%} of a core")
    return (
        result.title,
        f"{_number(result.rate)} {result.unit}{noisy}",
        f"{_number(low)}–{_number(high)}",
        "" if p50 is None or p99 is None else f"{p50:.1f} / {p99:.1f}",
        ", ".join(more),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plain_table(results: Sequence[Result]) -> str:
    lines = [HEADINGS, *lines_of(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown_table(run: Run) -> str:
    ruler = ("---", "--:", "--:", "--:", "---", "--:", "---")
    table = "\n".join(
        f"| {' | '.join(line)} |" for line in (HEADINGS, ruler, *lines_of(run.results))
    )
    machine = ", ".join(f"{name}: {value}" for name, value in run.machine.items())
    dates = sorted({result.measured_at[:10] for result in run.results})
    rounds = min(len(result.figures) for result in run.results)
    noisy = (
        "\n\n`*`: others took more than "
        f"{FOREIGN_SHARE_MAX:.0%} of the machine during a measurement of this row."
        if any(result.foreign > FOREIGN_SHARE_MAX for result in run.results)
        else ""
    )
    return (
        f"Measured on {' and '.join(dates)}, medians of {rounds} rounds. {machine}.\n\n"
        f"{table}{noisy}"
    )


def save(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")


def load(path: Path) -> Run:
    return msgspec.json.decode(path.read_bytes(), type=Run)


def merged(old: Run, new: Run) -> Run:
    """The new rows in the place of the old ones, so that a disturbed row can be measured again."""
    rows = {result.title: result for result in [*old.results, *new.results]}
    return Run(new.machine, list(rows.values()))


def publish(run: Run, document: Path, picture: Path) -> None:
    """Puts the table and the chart into the documentation."""
    before, begin, rest = document.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{document} has no place for the figures"
    document.write_text(f"{before}{BEGIN}\n{markdown_table(run)}\n{END}{after}", "utf-8")
    picture.write_text(chart(run.results), "utf-8")
