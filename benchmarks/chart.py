"""The ratios as a chart: a bar for each ratio, and a line at the bare limit."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .figures import Result

WIDTH, LABELS, FIGURES = 900, 290, 190
BAR, GAP, TOP = 16, 8, 44
RATIO_MAX = 1.5  #: longer bars are cut; their number shows the ratio

STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .quiet { fill: #6e7781 }
    .bar { fill: #0969da }
    .limit { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 4 3 }
    .back { fill: #ffffff }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .quiet { fill: #9198a1 } .back { fill: #0d1117 }
      .bar { fill: #4493f8 } .limit { stroke: #f85149 }
    }
"""


def chart(results: Sequence[Result]) -> str:
    bars = [
        (result, limit, ratio)
        for result in results
        if result.is_bare and not result.less_is_better
        for limit in result.limits
        if (ratio := result.ratio(limit)) is not None
    ]
    height = TOP + len(bars) * (BAR + GAP) + GAP
    unit = (WIDTH - LABELS - FIGURES) / RATIO_MAX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        'aria-label="Rates of the service as a part of the bare limits">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        _text(LABELS + unit, 20, "the bare limit = 100 %", "middle", "quiet"),
        f'<line class="limit" x1="{LABELS + unit}" x2="{LABELS + unit}" '
        f'y1="{TOP - 16}" y2="{height - GAP}"/>',
    ]
    title = ""
    for number, (result, limit, ratio) in enumerate(bars):
        y = TOP + number * (BAR + GAP)
        if result.title != title:
            title = result.title
            parts.append(_text(LABELS - 10, y + 12, title, "end"))
        length = min(ratio, RATIO_MAX) * unit
        name, _, _ = limit.partition(",")
        parts += [
            f'<rect class="bar" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
            _text(LABELS + length + 6, y + 12, f"{ratio:.0%} of {name}", "start"),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{of_kind}>{escape(text)}</text>'
