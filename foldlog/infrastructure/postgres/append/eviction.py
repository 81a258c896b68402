"""Limits the number of entries of a cache that several threads fill."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def evict_oldest(cache: dict[str, Any], size_max: int) -> None:
    """Removes the oldest entries until the cache has fewer than `size_max` entries.

    Call it before each insertion; the cache then has at most `size_max` entries afterwards.
    """
    while len(cache) >= size_max:
        # Another thread may change the cache between these two steps.
        with suppress(KeyError, StopIteration, RuntimeError):
            del cache[next(iter(cache))]
