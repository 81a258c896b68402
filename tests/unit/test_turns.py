"""Turns at the database: bounded, and never all of one caller's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from foldlog.api.http.threads import Turns
from foldlog.domain.errors import StorageUnavailable


def refused(turns: Turns, caller: str) -> bool:
    try:
        with turns.one(caller, seconds_max=0):
            return False
    except StorageUnavailable:
        return True


def test_no_more_than_so_many_at_a_time_and_one_is_left_for_others():
    turns = Turns(3)
    with turns.one("a"), turns.one("a"):
        assert refused(turns, "a")
        assert not refused(turns, "b")
        with turns.one("b"):
            assert refused(turns, "c")
    assert not refused(turns, "a")


def test_where_there_is_one_turn_all_have_it():
    turns = Turns(1)
    with turns.one("a"):
        assert refused(turns, "b")
    assert not refused(turns, "b")


def test_a_turn_is_given_back_by_what_fails():
    turns = Turns(1)
    with pytest.raises(ZeroDivisionError), turns.one("a"):
        1 / 0  # noqa: B018
    assert not refused(turns, "a")


def test_who_waits_has_the_next_turn():
    turns = Turns(2)
    most, at_once, lock = 0, 0, threading.Lock()

    def work(number: int) -> None:
        nonlocal most, at_once
        with turns.one(f"caller {number % 5}"):
            with lock:
                at_once += 1
                most = max(most, at_once)
            threading.Event().wait(0.002)
            with lock:
                at_once -= 1

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(work, range(100)))
    assert (most, at_once) == (2, 0)
    assert not turns._taken_by
