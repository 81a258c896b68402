"""All rows, and the choice of rows for a run."""

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
    """Returns the named rows. Returns all short rows if `names` is empty."""
    return [row for row in ROWS if (row.name in names if names else not row.is_long)]
