"""Filtered pages of every kind of store, with a limit of a few scanned events.

The limit is 20,000 events by default, which no quick test reaches.
"""

from __future__ import annotations

from itertools import product

import pytest

from foldlog.domain.limits import Limits
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.postgres.event_store import PostgresEventStore
from foldlog.infrastructure.postgres.service_events.registry import PostgresRegistry
from tests.helpers import A, changeset, pull_all, push_of, put

#: one collection for each event; the last events are left out by every filter but "c"
LOG = "abbacacccabcccc"
FILTERS = [(), ("a",), ("b",), ("a", "c"), ("none",)]


@pytest.fixture(params=["memory", "postgres"])
def store_of(request):
    """Makes a store that scans so many events for a page. All stores of a test have one log."""
    if request.param == "memory":
        memory = MemoryStore()
        memory.push("s", push_of(*(changeset(put("r", name)) for name in LOG)))

        def of_memory(scan: int):
            memory._limits = Limits(page_scan_max=scan)
            return memory

        return of_memory
    datastore = request.getfixturevalue("datastore")
    PostgresEventStore(datastore).push("s", push_of(*(changeset(put("r", name)) for name in LOG)))
    return lambda scan: PostgresEventStore(datastore, limits=Limits(page_scan_max=scan))


def test_a_page_ends_at_the_scan_limit_with_the_mark_of_its_last_event(store_of):
    """A page covers the events that its filter left out. Its `through` and `mark` are those of the
    last covered event, which the page may lack: the next request sends them as its cursor."""
    entries = list(store_of(100).entries("s", through=len(LOG)))
    marks = ["", *(entry.mark for entry in entries)]
    for scan, wanted, limit in product((1, 2, 3, 5, len(LOG)), FILTERS, (1, 2, 9)):
        store = store_of(scan)
        for after in range(len(LOG) + 1):
            query = RangeQuery(after, limit, mark=marks[after], collections=list(wanted))
            page = store.range_after("s", query)
            covered = entries[after : page.through]
            chosen = [entry.state for entry in covered if set(entry.collections) & set(wanted)]
            assert page.events == chosen
            assert (page.mark, page.head) == (marks[page.through], len(LOG))
            assert len(page.events) <= limit and page.through <= after + scan
            if len(page.events) < limit:
                assert page.through == min(after + scan, len(LOG))
            assert page.more == (page.through < len(LOG))


@pytest.mark.parametrize("wanted", FILTERS)
def test_a_reader_reaches_the_head_page_by_page(store_of, wanted):
    """Each cursor of a page is accepted, also where the page is empty."""
    for scan in (1, 4):
        store = store_of(scan)
        pulled = pull_all(store, "s", limit=2, collections=list(wanted))
        assert len(pulled) == sum(LOG.count(name) for name in wanted)


def test_service_events_come_with_every_filter(store_of):
    """They have no collection, and each reader needs them."""
    store = store_of(4)
    if isinstance(store, MemoryStore):
        store.revoke_device("s", A, reason="lost")
    else:
        registry = PostgresRegistry(store._datastore, store.append_service_event)
        registry.revoke_device("s", A, reason="lost")
    pulled = pull_all(store_of(4), "s", limit=2, collections=["none"])
    assert len(pulled) == 1 and b"device-revoked" in pulled[0]
