"""The cache of log ends answers correctly, and late by one notification at most."""

from __future__ import annotations

import random
import secrets
from datetime import UTC, datetime

import msgspec
import pytest

from foldlog.domain.changesets import Changeset
from foldlog.domain.errors import FoldlogError
from foldlog.domain.events import Envelope, LogEntry, changeset_entry
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Range, RangeQuery
from foldlog.domain.skipping import event_skipped_entry
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.postgres.log import tail_cache as tails_module
from foldlog.infrastructure.postgres.log.tail_cache import (
    CONFIRMED_SECONDS_MAX,
    LogEnd,
    LogTailCache,
)
from tests.helpers import A, B, changeset, new_id, push_of, put

LOG = "log"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tails(clock):
    return LogTailCache(clock=clock)


def entries(first: int, last: int, device: str = A) -> list[LogEntry]:
    return [
        changeset_entry(
            Changeset(id=new_id(), base=0, made_at=EPOCH, ops=[]),
            seq=seq,
            device=device,
            received_at=0,
            time=0,
            refusal=msgspec.UNSET,
            salt=secrets.token_bytes(32),
        )
        for seq in range(first, last + 1)
    ]


def cache(tails, found, mark_before=None, at=100.0):
    """Adds events, by default as the next ones of the cached log."""
    if mark_before is None:
        head, mark = tails.head_and_mark("s") or (0, "")
        mark_before = mark if head == found[0].seq - 1 else ""
    tails.update("s", LogEnd(LOG, found[-1].seq, found, mark_before, at))


def seqs(page: Range | None) -> list[int] | None:
    return None if page is None else [msgspec.json.decode(e)["seq"] for e in page.events]


def test_appended_events_are_cached(tails):
    """The cache answers with events, head and mark. At the head the page is empty."""
    found = entries(1, 5)
    cache(tails, found)
    assert seqs(tails.range_after("s", RangeQuery(2, 100))) == [3, 4, 5]
    assert seqs(tails.range_after("s", RangeQuery(2, 2, mark=found[1].mark))) == [3, 4]
    page = tails.range_after("s", RangeQuery(5, 100, mark=found[4].mark))
    assert (page.events, page.head, page.through, page.mark) == ([], 5, 5, found[4].mark)


@pytest.mark.parametrize(
    "query",
    [
        RangeQuery(6, 9),
        RangeQuery(1, 9),
        RangeQuery(5, 9, mark="f" * 16),
        RangeQuery(3, 9, mark=""),
    ],
    ids=["beyond the head", "before the tail", "another mark", "no mark where there is one"],
)
def test_a_cursor_is_never_refused_from_memory(tails, query):
    """The cache may be stale, so the database decides about such a cursor."""
    cache(tails, entries(3, 5), mark_before="a" * 16)
    assert tails.range_after("s", query) is None


def test_an_unconfirmed_end_expires(tails, clock):
    cache(tails, entries(1, 3))
    clock.now += CONFIRMED_SECONDS_MAX - 1
    found = tails.range_after("s", RangeQuery(3, 9))
    assert found is not None
    assert not tails.confirm("s", LogEnd(LOG, 3, [], found.mark, clock.now))
    clock.now += CONFIRMED_SECONDS_MAX
    assert tails.range_after("s", RangeQuery(3, 9)) is not None
    clock.now += 0.1
    assert tails.range_after("s", RangeQuery(3, 9)) is None


def test_an_announced_append_makes_the_end_stale(tails):
    """The cache answers again after the missing events were read."""
    cache(tails, entries(1, 3))
    tails.announce("s", 3)
    assert tails.range_after("s", RangeQuery(3, 9)) is not None
    tails.announce("s", 4)
    assert tails.range_after("s", RangeQuery(3, 9)) is None
    cache(tails, entries(4, 4))
    assert seqs(tails.range_after("s", RangeQuery(2, 9))) == [3, 4]


def test_a_notification_may_overtake_a_read(tails):
    """A head is read, then announced as moved, and only then added to the cache."""
    tails.announce("s", 4)
    tails.update("s", LogEnd(LOG, 3, [], "a" * 16, 100.0))
    assert tails.range_after("s", RangeQuery(3, 9)) is None


def test_a_hole_restarts_the_tail(tails):
    """Events after a gap replace the cached ones."""
    cache(tails, entries(1, 3))
    cache(tails, entries(6, 7), mark_before="b" * 16)
    assert tails.range_after("s", RangeQuery(3, 9)) is None
    assert seqs(tails.range_after("s", RangeQuery(5, 9, mark="b" * 16))) == [6, 7]


@pytest.mark.parametrize(
    ("log", "head", "mark"),
    [("other", 3, None), (LOG, 2, None), (LOG, 3, "c" * 16)],
    ids=["another log", "an older state", "another event at the head"],
)
def test_a_restored_database_is_noticed(tails, log, head, mark):
    found = entries(1, 3)
    cache(tails, found)
    tails.confirm("s", LogEnd(log, head, [], mark or found[head - 1].mark, 101.0))
    assert tails.range_after("s", RangeQuery(3, 9)) is None


def test_a_read_before_an_append_keeps_the_cache(tails):
    """The heads are read, then an event is appended, and only then the read arrives."""
    found = entries(1, 3)
    cache(tails, found[:2])
    cache(tails, found[2:], at=102.0)
    tails.confirm("s", LogEnd(LOG, 2, [], found[1].mark, 101.0))
    assert seqs(tails.range_after("s", RangeQuery(0, 9))) == [1, 2, 3]


def test_memory_is_bounded(tails, monkeypatch):
    """Each tail has limits of events and bytes. All tails share a limit of bytes (LRU)."""
    monkeypatch.setattr(tails_module, "TAIL_EVENTS_MAX", 10)
    cache(tails, entries(1, 50))
    assert seqs(tails.range_after("s", RangeQuery(40, 99))) == list(range(41, 51))
    assert tails.range_after("s", RangeQuery(39, 99)) is None
    small = LogTailCache(bytes_max=20_000, clock=Clock())
    for number in range(50):
        small.update(f"s{number}", LogEnd(LOG, 1, entries(1, 1), "", 100.0))
    kept = [n for n in range(50) if small.range_after(f"s{n}", RangeQuery(0, 9)) is not None]
    assert kept and kept == list(range(kept[0], 50))
    assert small._size <= 20_000 == small._bytes_max


def test_a_skip_drops_the_events_before_it(tails):
    """Readers may get a placeholder for a skipped event, which only the database knows."""
    cache(tails, entries(1, 3))
    skip = event_skipped_entry(Envelope(4, new_id(), 0, bytes(32)), 2, reason="r", by=None)
    cache(tails, [skip])
    assert tails.range_after("s", RangeQuery(2, 9)) is None
    assert seqs(tails.range_after("s", RangeQuery(3, 9))) == [4]


def test_watchers_are_called_after_growth_alone(tails):
    calls = []
    unwatch = tails.watch("s", lambda: calls.append(tails.range_after("s", RangeQuery(0, 9)).head))
    found = entries(1, 2)
    cache(tails, found[:1])
    cache(tails, found[:1])  # a second read without new events
    cache(tails, found[1:])
    assert calls == [1, 2]
    assert tails.announce("s", 9), "a watcher waits, so the events must be read"
    unwatch()
    cache(tails, entries(3, 3))
    assert calls == [1, 2] and not tails.announce("s", 10)


def test_pages_are_the_stores_own():
    """Random pages from the cache equal those of the store in memory."""
    rng = random.Random(11)
    limits = Limits(page_bytes_max=1_500, page_scan_max=20_000)
    store, tails = MemoryStore(limits=limits), LogTailCache(limits=limits)
    answered = 0
    for _ in range(60):
        ops = [put(f"r{n}", collection=rng.choice("ab")) for n in range(rng.randint(1, 2))]
        store.push("s", push_of(changeset(*ops), device=rng.choice([A, B])))
        head = store.range_after("s", RangeQuery(0, 1)).head
        if rng.random() < 0.7:
            start = head - rng.randint(1, min(3, head))
            found = list(store.entries("s", after=start, through=head))
            before = "".join(
                e.mark for e in store.entries("s", after=max(0, start - 1), through=start)
            )
            log = store.range_after("s", RangeQuery(0, 1)).log
            tails.update("s", LogEnd(log, head, found, before, float("inf")))
        else:
            tails.announce("s", head)
        for _ in range(10):
            query = RangeQuery(
                rng.randint(0, head + 1),
                rng.randint(1, 8),
                bytes_max=rng.choice([600, 10_000]),
                collections=rng.choice([None, ["a"], ["b"], ["c"]]),
                short_for_device=rng.choice([None, A]),
            )
            page = tails.range_after("s", query)
            if page is not None:
                answered += 1
                try:
                    assert page == store.range_after("s", query)
                except FoldlogError:
                    pytest.fail("the store refuses this cursor")
    assert answered > 80


def test_a_restored_history_replaces_the_cached_one(tails):
    """Another process goes on from an older backup. Its events never follow those of before."""
    before, after = entries(1, 5), entries(4, 7)
    cache(tails, before)
    cache(tails, after[2:], mark_before=after[1].mark)  # seq 6 and 7 of the restored log
    assert tails.range_after("s", RangeQuery(3, 9)) is None
    assert seqs(tails.range_after("s", RangeQuery(5, 9, mark=after[1].mark))) == [6, 7]


def test_a_newer_read_of_a_shorter_log_replaces_the_cache(tails):
    found = entries(1, 5)
    cache(tails, found)
    tails.update("s", LogEnd(LOG, 3, [], found[2].mark, 101.0))
    assert tails.range_after("s", RangeQuery(4, 9)) is None
    assert tails.range_after("s", RangeQuery(3, 9)) == Range(LOG, 3, [], 3, found[2].mark)
