"""Waiting for the master table: its position is looked at, and a page is read when it is there."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from foldlog.api.http import waiting
from foldlog.api.http.rates import NO_RATES, RateSubject
from foldlog.api.http.waiting import ProjectedReads
from foldlog.domain.errors import ProjectionBehind
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Projected

QUICK = Limits(at_least_wait_seconds_max=1)


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
        if self.reached < at_least:
            raise ProjectionBehind(awaited=at_least, projected=self.reached, head=at_least)
        return self.reached


class Asking:
    """A request on a loop; `is_connected` says whether its client still waits."""

    def __init__(self, *, is_connected: bool = True):
        self.is_connected = is_connected
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
        return NO_RATES.hold(RateSubject())


def ask(master, at_least, *askings):
    async def all_of_them():
        reads = ProjectedReads(master, QUICK)
        read = partial(master.read, at_least)
        return await asyncio.gather(*(reads(asking, "s", read) for asking in askings))

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
        return asyncio.run(reads(Asking(), "s", partial(master.read, 3)))

    reads = ProjectedReads(master, QUICK)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(wait, [reads] * 4))
    assert not reads._looks
