"""The rule for scarce resources: bounded in all, and never all for one caller."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.api.http.threads import Disconnected, FairThreads
from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.fairness import Exceeded, FairQueue, Shares, Turns


def test_a_caller_takes_its_share_and_others_take_the_rest():
    shares = Shares(size=3, share=2)
    assert [shares.take("a") for _ in range(3)] == [None, None, Exceeded.SHARE]
    assert [shares.take("b") for _ in range(2)] == [None, Exceeded.SIZE]
    shares.release("a")
    assert shares.take("b") is None
    assert (shares.held, shares.held_by("a"), shares.held_by("b")) == (3, 1, 2)


def test_a_refused_amount_takes_nothing():
    shares = Shares(size=10, share=6)
    assert shares.take("a", 7) is Exceeded.SHARE
    assert shares.take("a", 6) is None
    assert shares.take("b", 5) is Exceeded.SIZE
    assert shares.held == 6


def test_zero_is_no_bound_and_the_empty_key_has_no_share():
    assert Shares().take("a", 10**9) is None
    shares = Shares(size=3, share=1)
    assert [shares.take("") for _ in range(4)] == [None, None, None, Exceeded.SIZE]


def test_a_released_caller_leaves_no_memory():
    shares = Shares(size=3, share=1)
    for number in range(100):
        shares.take(str(number))
        shares.release(str(number))
    assert not shares._held_by


def test_what_is_put_back_is_next_in_its_old_order():
    turns: Turns[int] = Turns()
    for key, item in (("a", 1), ("a", 2), ("a", 5), ("b", 3), ("c", 4)):
        turns.put(key, item)
    taken = [turns.take() for _ in range(4)]
    assert taken == [1, 3, 4, 2]
    for key, item in reversed((("b", 3), ("c", 4), ("a", 2))):
        turns.put_back(key, item)
    assert list(turns.callers) == ["b", "c", "a"] and turns.peek() == 3 and len(turns) == 4
    assert [turns.take() for _ in range(4)] == [3, 4, 2, 5]
    assert not turns


def test_a_caller_with_many_items_delays_another_by_one():
    queue: FairQueue[int] = FairQueue(2)
    for number in range(100):
        queue.put("greedy", number)
    assert queue.next() == ("greedy", 0)
    assert queue.next() is None  # one worker stays for other callers
    queue.put("modest", -1)
    assert queue.next() == ("modest", -1)
    queue.done("greedy")
    queue.put("modest", -2)
    assert queue.next() == ("greedy", 1)
    queue.done("modest")
    assert queue.next() == ("modest", -2)


def test_a_single_worker_serves_every_caller_in_turn():
    queue: FairQueue[str] = FairQueue(1)
    for item in ("a1", "a2", "b1", "a3", "b2"):
        queue.put(item[0], item)
    served = []
    while (found := queue.next()) is not None:
        served.append(found[1])
        queue.done(found[0])
    assert served == ["a1", "b1", "a2", "b2", "a3"]


def test_a_withdrawn_item_is_not_served():
    queue: FairQueue[str] = FairQueue(1)
    queue.put("a", "x")
    queue.remove("a", "x")
    assert queue.next() is None and len(queue) == 0
    with pytest.raises(ValueError):
        queue.remove("a", "x")


@given(
    workers=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60),
)
def test_every_item_is_served_once_and_no_caller_has_all_workers(workers, steps):
    """Whatever comes in whatever order; and no item waits while its caller may have a worker."""
    queue: FairQueue[int] = FairQueue(workers)
    running: list[str] = []
    put, served = 0, 0

    def serve() -> None:
        nonlocal served
        while (found := queue.next()) is not None:
            running.append(found[0])
            served += 1
        assert queue.busy == len(running) <= workers
        share = max(1, workers - 1)
        assert all(running.count(key) <= share for key in "abc")
        free = workers - len(running)
        idle = [key for key in queue._waiting if running.count(key) < share]
        assert not (free and idle)

    for key, ends in steps:
        if ends and running:
            queue.done(running.pop(0))
        else:
            queue.put(key, put)
            put += 1
        serve()
    while running:
        queue.done(running.pop())
        serve()
    assert served == put


# -- Threads -----------------------------------------------------------------------------------


@pytest.fixture
def threads():
    made = FairThreads(2, "test")
    yield made
    made.close()


def test_one_caller_never_has_all_threads(threads):
    """Twenty calls of one caller that all hang; a call of another caller is answered."""
    go_on = threading.Event()

    async def calls() -> list[object]:
        greedy = [asyncio.create_task(threads.run("greedy", go_on.wait)) for _ in range(20)]
        await asyncio.sleep(0)
        assert await threads.run("modest", lambda: "answered") == "answered"
        assert threads.load == 20
        go_on.set()
        return await asyncio.gather(*greedy)

    assert asyncio.run(calls()) == [True] * 20
    assert threads.load == 0


def test_a_call_that_gets_no_thread_in_time_is_refused_and_leaves_the_queue(threads):
    go_on = threading.Event()

    async def calls() -> None:
        first = asyncio.create_task(threads.run("a", go_on.wait))
        await asyncio.sleep(0)
        with pytest.raises(StorageUnavailable):
            await threads.run("a", int, seconds_max=0.01)
        assert threads.load == 1
        go_on.set()
        await first

    asyncio.run(calls())


def test_a_call_that_takes_too_long_keeps_its_thread_until_it_ends(threads):
    """The caller gets an answer; the thread is free for others when the function returns."""
    go_on = threading.Event()

    async def calls() -> None:
        with pytest.raises(StorageUnavailable):
            await threads.run("a", go_on.wait, seconds_max=0.01)
        assert threads.load == 1
        go_on.set()
        while threads.load:
            await asyncio.sleep(0.001)

    asyncio.run(calls())


def test_a_client_that_disconnects_leaves_the_queue(threads):
    go_on = threading.Event()

    async def calls() -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(threads.run("a", go_on.wait))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(threads.run("a", int, abandoned=lambda: gone))
        await asyncio.sleep(0)
        assert threads.load == 2
        gone.set_result(None)
        with pytest.raises(Disconnected):
            await waiting
        assert threads.load == 1
        go_on.set()
        await first

    asyncio.run(calls())


def test_a_cancelled_call_leaves_the_queue(threads):
    go_on = threading.Event()

    async def calls() -> None:
        first = asyncio.create_task(threads.run("a", go_on.wait))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(threads.run("a", int))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert threads.load == 1
        go_on.set()
        await first

    asyncio.run(calls())


def test_the_function_s_exception_is_raised_and_frees_the_thread(threads):
    async def calls() -> None:
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 / 0)
        assert threads.load == 0

    asyncio.run(calls())


def test_a_change_that_has_begun_is_awaited(threads):
    """A refusal must mean that the change did not happen: only the wait for a thread is bounded."""
    go_on, done = threading.Event(), []

    def change() -> str:
        go_on.wait()
        done.append(True)
        return "changed"

    async def calls() -> None:
        running = asyncio.create_task(threads.run("a", change, seconds_max=0.01, runs_to_end=True))
        await asyncio.sleep(0)
        with pytest.raises(StorageUnavailable):
            await threads.run("a", change, seconds_max=0.05, runs_to_end=True)
        assert not running.done() and not done
        go_on.set()
        assert await running == "changed"
        assert done == [True]

    asyncio.run(calls())
