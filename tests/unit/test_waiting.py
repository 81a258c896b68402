"""Waiting for the master table: its position is looked at, and a page is read when it is there."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from foldlog.api.http import waiting
from foldlog.api.http.rates import NO_RATES, STREAMS, LimitedRates, Rates, RateSubject
from foldlog.api.http.waiting import ProjectedReads
from foldlog.domain.errors import ProjectionBehind, RateLimited
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Projected

QUICK = Limits(at_least_wait_seconds_max=1, head_wait_seconds_max=1)
HEAD = 5


class Master:
    """Comes on by one with each look, unless it has stopped."""

    def __init__(self, *, is_halted: bool = False, stands: bool = False):
        self.reached = self.looks = self.reads = 0
        self.is_halted = is_halted
        self.stands = stands or is_halted

    def position(self, space):
        self.looks += 1
        self.reached += not self.stands
        return Projected(self.reached, self.is_halted)

    def read(self, at_least):
        self.reads += 1
        awaited = HEAD if at_least is None else at_least
        if self.reached < awaited:
            raise ProjectionBehind(awaited=awaited, projected=self.reached, head=HEAD)
        return self.reached


class Asking:
    """A request on a loop; `is_connected` says whether its client still waits."""

    def __init__(self, *, is_connected: bool = True, rates: Rates = NO_RATES):
        self.is_connected = is_connected
        self.rates = rates
        self.pauses = self.admitted = 0

    async def run(self, function, *args):
        await asyncio.sleep(0)
        return function(*args)

    async def pause(self, seconds):
        self.pauses += 1
        await asyncio.sleep(seconds)
        return self.is_connected

    async def readmit(self):
        self.admitted += 1

    def hold(self):
        return self.rates.hold(RateSubject(address="192.0.2.1"), STREAMS)


def ask(master, at_least, *askings):
    async def all_of_them():
        reads = ProjectedReads(master, QUICK)
        return await asyncio.gather(
            *(reads(asking, "s", master.read, at_least) for asking in askings)
        )

    return asyncio.run(all_of_them())


def test_a_page_is_read_once_more_when_it_is_there():
    """However many looks it takes; and whoever asked is looked at again before they are told."""
    master, asking = Master(), Asking()
    assert ask(master, 5, asking) == [5]
    assert (master.reads, master.looks, asking.admitted) == (2, 5, 1)


def test_what_is_there_is_not_looked_for():
    master = Master()
    assert ask(master, 0, Asking()) == [0]
    assert (master.reads, master.looks) == (1, 0)


def test_a_projection_that_has_stopped_is_not_waited_for():
    """It would be in vain, for ten seconds."""
    master, asking = Master(is_halted=True), Asking()
    with pytest.raises(ProjectionBehind):
        ask(master, 5, asking)
    assert (master.reads, master.looks, asking.pauses) == (1, 1, 0)


def test_a_client_that_has_left_is_not_waited_for():
    master, asking = Master(), Asking(is_connected=False)
    with pytest.raises(ProjectionBehind):
        ask(master, 5, asking)
    assert (master.looks, asking.pauses) == (1, 1)


def test_who_waits_for_one_space_shares_its_looks(monkeypatch):
    """Two hundred who wait cost the database what one does."""
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.05)
    master = Master()
    assert min(ask(master, 4, *(Asking() for _ in range(200)))) == 4
    assert master.looks < 10


def test_nobody_waits_for_longer_than_the_limit():
    master = Master(stands=True)
    with pytest.raises(ProjectionBehind):
        ask(master, 5, Asking())
    assert master.reads == 1


def test_what_is_seen_by_many_threads_is_forgotten_with_the_last_who_waits():
    """A space that nobody waits for takes no memory."""
    master, reads = Master(), None

    def wait(reads):
        return asyncio.run(reads(Asking(), "s", master.read, 3))

    reads = ProjectedReads(master, QUICK)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(wait, [reads] * 4))
    assert not reads._looks


def test_a_read_without_a_seq_waits_for_the_head():
    master, asking = Master(), Asking()
    assert ask(master, None, asking) == [HEAD]
    assert (master.reads, master.looks, asking.admitted) == (2, HEAD, 1)


def test_a_read_without_a_seq_ends_with_what_is_there():
    """After a wait in vain, of a projection that stands or has stopped, or without a client."""
    for master in (Master(stands=True), Master(is_halted=True)):
        assert ask(master, None, Asking()) == [0]
        assert master.reads == 2
    assert ask(Master(), None, Asking(is_connected=False)) == [1]


def test_a_caller_without_a_free_stream_reads_what_is_there():
    """A read without a seq asks for no wait, so a limit of waits never refuses it."""
    master = Master()
    rates = LimitedRates(Limits(streams_per_caller_max=1))
    taken = rates.hold(RateSubject(address="192.0.2.1"), STREAMS)
    assert ask(master, None, Asking(rates=rates)) == [0]
    assert master.looks == 0
    with pytest.raises(RateLimited):
        ask(master, HEAD, Asking(rates=rates))
    taken.close()
    assert ask(master, None, Asking(rates=rates)) == [HEAD]
