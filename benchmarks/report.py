"""Prints a run as a table for a terminal or a document, and stores it in a file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .chart import chart
from .figures import Figure, Result, Run, median
from .noise import FOREIGN_SHARE_MAX

HEADINGS = ("what", "median", "spread", "p50 / p99 ms", "beside it", "ratio", "more")
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def lines_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Makes a line for each limit. Cells equal to those above stay empty."""
    lines: list[tuple[str, ...]] = []
    for result in results:
        own = _own(result)
        if not result.limits:
            lines.append((*own[:4], "", "", own[4]))
        for limit, figures in result.limits.items():
            lines.append((*own[:4], _beside(limit, figures), _ratio(result, limit), own[4]))
            own = ("",) * 5
    return lines


def _own(result: Result) -> tuple[str, ...]:
    low, high = result.spread
    noisy = " *" if result.foreign > FOREIGN_SHARE_MAX else ""
    return (
        result.title,
        f"{number(result.value)} {result.unit}{noisy}",
        f"{number(low)}–{number(high)}",
        _latency(result.figures),
        ", ".join(_more(result.figures)),
    )


def _beside(limit: str, figures: list[Figure]) -> str:
    value = statistics.median(figure.value for figure in figures)
    about = [text for text in _more(figures) if not text.startswith("generator")]
    return f"{limit}: {number(value)}" + (f" ({', '.join(about)})" if about else "")


def _ratio(result: Result, limit: str) -> str:
    ratio = result.ratio(limit)
    if ratio is None:
        return ""
    return f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f} ×"


def _latency(figures: list[Figure]) -> str:
    p50, p99 = median(figures, "p50_ms"), median(figures, "p99_ms")
    return "" if p50 is None or p99 is None else f"{p50:.1f} / {p99:.1f}"


def _more(figures: list[Figure]) -> list[str]:
    more = [figures[-1].note] if figures[-1].note else []
    if (size := median(figures, "bytes_each")) is not None:
        more.append(f"{size:.0f} bytes each")
    if (seconds := median(figures, "catch_up_seconds")) is not None:
        more.append(f"master table {seconds:.1f} s behind")
    if (memory := median(figures, "workers_mb")) is not None:
        more.append(f"web workers {memory:.0f} MB")
    if missing := median(figures, "missing"):
        more.append(f"{missing:.0%} of it not stored")
    if (cpu := median(figures, "generator_cpu")) is not None:
        more.append(f"generator {cpu:.0%} of a core")
    return more


def number(value: float) -> str:
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
    """Replaces old rows by new ones, so that a disturbed row can be measured again."""
    rows = {(result.row, result.title): result for result in [*old.results, *new.results]}
    return Run(new.machine, list(rows.values()))


def publish(run: Run, document: Path, picture: Path) -> None:
    """Puts the table and the chart into the documentation."""
    before, begin, rest = document.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{document} has no place for the figures"
    document.write_text(f"{before}{BEGIN}\n{markdown_table(run)}\n{END}{after}", "utf-8")
    picture.write_text(chart(run.results), "utf-8")
