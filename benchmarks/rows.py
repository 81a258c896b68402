"""All rows, and which of them a run is about."""

from __future__ import annotations

from collections.abc import Sequence

from . import asof, cells, growth, instructions, live, projection, wrk
from .cells import Row
from .peers import rows as peers

ROWS: tuple[Row, ...] = (
    *cells.ROWS,
    *wrk.ROWS,
    *projection.ROWS,
    *instructions.ROWS,
    *live.ROWS,
    *peers.ROWS,
    *growth.ROWS,
    *asof.ROWS,
)
NAMES = tuple(dict.fromkeys(row.name for row in ROWS))


def chosen(names: Sequence[str]) -> list[Row]:
    """Those named; without a name, all but the long ones."""
    return [row for row in ROWS if (row.name in names if names else not row.is_long)]
