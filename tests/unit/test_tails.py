"""The ends of the logs in memory: late perhaps, by the way of a notification, and never wrong."""

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


def keep(tails, found, mark_before="", at=100.0):
    tails.update("s", LogEnd(LOG, found[-1].seq, found, mark_before, at))


def seqs(page: Range | None) -> list[int] | None:
    return None if page is None else [msgspec.json.decode(e)["seq"] for e in page.events]


def test_what_was_appended_is_at_hand(tails):
    """The events, the head, and the mark; and at the head nothing new, which is most of it."""
    found = entries(1, 5)
    keep(tails, found)
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
    """What is kept may be old: whether such a cursor is wrong, only the database can say."""
    keep(tails, entries(3, 5), mark_before="a" * 16)
    assert tails.range_after("s", query) is None


def test_an_end_that_nobody_confirmed_is_no_end(tails, clock):
    keep(tails, entries(1, 3))
    clock.now += CONFIRMED_SECONDS_MAX - 1
    found = tails.range_after("s", RangeQuery(3, 9))
    assert found is not None
    assert not tails.confirm("s", LOG, 3, found.mark, clock.now)
    clock.now += CONFIRMED_SECONDS_MAX
    assert tails.range_after("s", RangeQuery(3, 9)) is not None
    clock.now += 0.1
    assert tails.range_after("s", RangeQuery(3, 9)) is None


def test_what_another_process_appended_is_told(tails):
    """From then on the end is not the end any more, until what is missing has been read."""
    keep(tails, entries(1, 3))
    tails.announce("s", 3)
    assert tails.range_after("s", RangeQuery(3, 9)) is not None
    tails.announce("s", 4)
    assert tails.range_after("s", RangeQuery(3, 9)) is None
    keep(tails, entries(4, 4))
    assert seqs(tails.range_after("s", RangeQuery(2, 9))) == [3, 4]


def test_a_notification_that_overtakes_a_read_is_not_forgotten(tails):
    """A head is read, then told to have moved, and only then put here."""
    tails.announce("s", 4)
    tails.update("s", LogEnd(LOG, 3, [], "a" * 16, 100.0))
    assert tails.range_after("s", RangeQuery(3, 9)) is None


def test_a_hole_is_not_filled_with_hope(tails):
    """What is put here after something that is missing begins anew."""
    keep(tails, entries(1, 3))
    keep(tails, entries(6, 7), mark_before="b" * 16)
    assert tails.range_after("s", RangeQuery(3, 9)) is None
    assert seqs(tails.range_after("s", RangeQuery(5, 9, mark="b" * 16))) == [6, 7]


@pytest.mark.parametrize(
    ("log", "head", "mark"),
    [("other", 3, None), (LOG, 2, None), (LOG, 3, "c" * 16)],
    ids=["another log", "an older state", "another event at the head"],
)
def test_a_database_that_was_restored_is_noticed(tails, log, head, mark):
    found = entries(1, 3)
    keep(tails, found)
    tails.confirm("s", log, head, mark or found[head - 1].mark, 101.0)
    assert tails.range_after("s", RangeQuery(3, 9)) is None


def test_a_look_that_is_older_than_an_append_drops_nothing(tails):
    """The heads were looked at, then something was appended, and only then is the look told."""
    found = entries(1, 3)
    keep(tails, found[:2])
    keep(tails, found[2:], at=102.0)
    tails.confirm("s", LOG, 2, found[1].mark, 101.0)
    assert seqs(tails.range_after("s", RangeQuery(0, 9))) == [1, 2, 3]


def test_memory_is_bounded(tails, monkeypatch):
    """A tail by events and bytes; all of them together by bytes, the least used first."""
    monkeypatch.setattr(tails_module, "TAIL_EVENTS_MAX", 10)
    keep(tails, entries(1, 50))
    assert seqs(tails.range_after("s", RangeQuery(40, 99))) == list(range(41, 51))
    assert tails.range_after("s", RangeQuery(39, 99)) is None
    small = LogTailCache(bytes_max=20_000, clock=Clock())
    for number in range(50):
        small.update(f"s{number}", LogEnd(LOG, 1, entries(1, 1), "", 100.0))
    kept = [n for n in range(50) if small.range_after(f"s{n}", RangeQuery(0, 9)) is not None]
    assert kept and kept == list(range(kept[0], 50))
    assert small._size <= 20_000 == small._bytes_max


def test_what_was_read_before_a_skip_is_not_told_any_more(tails):
    """Readers of what is skipped may be given something else in its place: the database knows."""
    keep(tails, entries(1, 3))
    skip = event_skipped_entry(Envelope(4, new_id(), 0, bytes(32)), 2, reason="r", by=None)
    keep(tails, [skip])
    assert tails.range_after("s", RangeQuery(2, 9)) is None
    assert seqs(tails.range_after("s", RangeQuery(3, 9))) == [4]


def test_watchers_are_called_after_growth_alone(tails):
    calls = []
    unwatch = tails.watch("s", lambda: calls.append(tails.range_after("s", RangeQuery(0, 9)).head))
    found = entries(1, 2)
    keep(tails, found[:1])
    keep(tails, found[:1])  # read once more: nothing new
    keep(tails, found[1:])
    assert calls == [1, 2]
    assert tails.announce("s", 9), "somebody waits, so it is to be read"
    unwatch()
    keep(tails, entries(3, 3))
    assert calls == [1, 2] and not tails.announce("s", 10)


def test_pages_are_the_stores_own():
    """Against the store in memory, at random: what is at hand is what would be read."""
    rng = random.Random(11)
    limits = Limits(page_bytes_max=1_500, page_scan_max=20_000)
    store, tails = MemoryStore(limits=limits), LogTailCache(limits=limits)
    told = 0
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
                told += 1
                try:
                    assert page == store.range_after("s", query)
                except FoldlogError:
                    pytest.fail("the store would have refused this cursor")
    assert told > 80
