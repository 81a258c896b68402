"""Tests that set the clock and the limits of the store in memory."""

from __future__ import annotations

import json

from foldlog.domain.limits import Limits
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import changeset, pull_all, push_of, put


def test_a_clock_that_goes_back_does_not_take_the_log_along():
    """`received_at` stays at the last value, so `time` stays at or below it."""
    clock = iter([5_000, 3_000, 7_000])
    store = MemoryStore(now_ms=lambda: next(clock))
    for _ in range(3):
        store.push("s", push_of(changeset()))
    times = [json.loads(event)["received_at"][17:] for event in pull_all(store, "s")]
    assert times == ["05.000Z", "05.000Z", "07.000Z"]


def test_a_page_ends_early_but_is_never_empty_when_events_are_large():
    """An event that exceeds the size of a page is a page of its own, so that a reader can pass
    it.
    """
    store = MemoryStore(limits=Limits(page_bytes_max=3_000))
    for size in (10, 5_000, 10, 1_000, 10):
        store.push("s", push_of(changeset(put(text="x" * size))))
    pages = []
    after = 0
    while after < 5:
        page = store.range_after("s", RangeQuery(after, 9))
        pages.append(len(page.events))
        after = page.through
    assert pages == [1, 1, 3]


def test_a_filtered_page_looks_at_so_many_events_and_no_more():
    """The page may be empty. It has `more`, and its cursor moves on."""
    store = MemoryStore(limits=Limits(page_scan_max=3))
    store.push("s", push_of(*(changeset(put("r", "c")) for _ in range(7))))
    store.push("s", push_of(changeset(put("r", "wanted"))))
    page = store.range_after("s", RangeQuery(0, 9, collections=["wanted"]))
    assert (page.events, page.through, page.more) == ([], 3, True)
    assert len(pull_all(store, "s", collections=["wanted"])) == 1
