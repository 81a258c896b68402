"""Compares the rows that the events make with the stored rows, and describes a difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from foldlog.domain.derived import UNPROVABLE, Row, RowKey


def joined(
    expected: Iterable[tuple[RowKey, Row]], stored: Iterable[tuple[RowKey, Row]]
) -> Iterator[tuple[RowKey, Row | None, Row | None]]:
    """Joins expected and stored rows by their keys. Both must be sorted by the key.

    Yields a triple for each key: the key, the expected row, and the stored row. A row is `None`
    where the other side alone has the key.
    """
    ours, theirs = iter(expected), iter(stored)
    mine, found = next(ours, None), next(theirs, None)
    while mine is not None or found is not None:
        if found is None or (mine is not None and mine[0] < found[0]):
            assert mine is not None
            yield mine[0], mine[1], None
            mine = next(ours, None)
        elif mine is None or found[0] < mine[0]:
            yield found[0], None, found[1]
            found = next(theirs, None)
        else:
            yield found[0], mine[1], found[1]
            mine, found = next(ours, None), next(theirs, None)


def difference(table: str, key: RowKey, expected: Row | None, found: Row | None) -> str | None:
    """Describes the first column in which a stored row differs from the expected one.

    Returns `None` if the rows are equal. A value that the events do not contain is left out.
    """
    name = f"{table} {'/'.join(map(str, key))}" if key else table
    if found is None:
        return f"{name} is missing"
    if expected is None:
        return f"{name} is made by no event"
    for column, value in expected.items():
        if value != UNPROVABLE and found[column] != value:
            return f"{name}: {column} is {found[column]!r}, but the events make it {value!r}"
    return None


def first_difference(
    table: str,
    expected: Iterable[tuple[RowKey, Row]],
    stored: Iterable[tuple[RowKey, Row]],
    absent: Row | None = None,
) -> str | None:
    """Describes the first difference between two sorted tables, or returns `None`.

    A row that equals `absent` means the same as a missing one.
    """
    for key, mine, found in joined(expected, stored):
        differs = difference(table, key, mine or absent, found or absent)
        if differs is not None:
            return differs
    return None
