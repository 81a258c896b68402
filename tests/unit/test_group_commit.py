"""Group commit: requests that wait together are committed together, and fail independently."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock

import pytest

from foldlog.domain.errors import StorageUnavailable
from foldlog.infrastructure.postgres.append.group_commit import GroupCommit, Postponed, QueueFull


class Recorder:
    """Records its commits. A group waits at the gate until the gate is opened."""

    def __init__(self):
        self.groups: list[tuple[str, list[int]]] = []
        self.gate = Event()
        self.entered = Event()
        self.lock = Lock()
        self.active: dict[str, int] = {}

    def commit(self, key, requests):
        with self.lock:
            self.active[key] = self.active.get(key, 0) + 1
            assert self.active[key] == 1, "two groups of one key at once"
            self.groups.append((key, list(requests)))
        self.entered.set()
        assert self.gate.wait(10)
        with self.lock:
            self.active[key] -= 1
        return [ValueError(r) if r < 0 else r * 10 for r in requests]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_waits_while_one_commits_goes_together():
    """The first goes alone. The nine that arrive meanwhile form a group. Each gets its own
    reply.
    """
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit)
    first = group_commit.submit("s", 0)
    recorder.entered.wait(10)
    others = [group_commit.submit("s", n) for n in range(1, 10)]
    wait_until(lambda: len(group_commit._queues["s"]) == 9)
    recorder.gate.set()
    assert [future.result() for future in [first, *others]] == [n * 10 for n in range(10)]
    assert recorder.groups[0] == ("s", [0])
    assert sorted(recorder.groups[1][1]) == list(range(1, 10)) and len(recorder.groups) == 2
    assert not group_commit._queues


def test_one_that_fails_takes_no_other_along():
    recorder = Recorder()
    recorder.gate.set()
    group_commit = GroupCommit(recorder.commit)
    with pytest.raises(ValueError, match="-1"):
        group_commit.submit("s", -1).result()
    assert group_commit.submit("s", 1).result() == 10


def test_keys_do_not_wait_for_each_other():
    """While the commit of one space hangs, another space commits."""
    recorder = Recorder()
    hangs = Event()

    def commit(key, requests):
        if key == "slow":
            recorder.entered.set()
            assert hangs.wait(10)
        return list(requests)

    group_commit = GroupCommit(commit)
    slow = group_commit.submit("slow", 1)
    recorder.entered.wait(10)
    assert group_commit.submit("quick", 2).result() == 2
    assert not slow.done()
    hangs.set()
    assert slow.result() == 1


def test_a_group_has_a_limit():
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, group_size_max=4)
    futures = [group_commit.submit("s", 0)]
    recorder.entered.wait(10)
    futures += [group_commit.submit("s", n) for n in range(1, 10)]
    wait_until(lambda: len(group_commit._queues["s"]) == 9)
    recorder.gate.set()
    assert [future.result() for future in futures] == [n * 10 for n in range(10)]
    assert [len(requests) for _, requests in recorder.groups] == [1, 4, 4, 1]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_commit_that_raises_fails_its_group_and_not_the_next(failure):
    """The thread goes on after the exception."""
    fails = Event()
    fails.set()
    recorder = Recorder()

    def commit(key, requests):
        if fails.is_set():
            recorder.entered.set()
            assert recorder.gate.wait(10)
            fails.clear()
            raise failure
        return list(requests)

    group_commit = GroupCommit(commit)
    first = group_commit.submit("s", 1)
    recorder.entered.wait(10)
    second = group_commit.submit("s", 2)
    wait_until(lambda: len(group_commit._queues["s"]) == 1)
    recorder.gate.set()
    assert second.result(10) == 2
    with pytest.raises(failure):
        first.result(10)


def test_under_load_everybody_is_answered_once():
    """Sixteen threads, three keys, no gate: every request gets its own reply."""
    together = Barrier(16)

    def commit(key, requests):
        time.sleep(0.0005)
        return [(key, request) for request in requests]

    group_commit = GroupCommit(commit)

    def work(number):
        together.wait(10)
        for n in range(100):
            key = "abc"[(number + n) % 3]
            assert group_commit.submit(key, (number, n)).result() == (key, (number, n))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    assert not group_commit._queues


def test_a_group_has_a_weight():
    """Large requests go in several transactions. A request over the limit goes alone."""
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, weigh=lambda n: n, group_weight_max=10)
    futures = [group_commit.submit("s", 1)]
    recorder.entered.wait(10)
    for weight in (6, 4, 5, 50, 3):
        before = len(group_commit._queues["s"])
        futures.append(group_commit.submit("s", weight))
        wait_until(lambda before=before: len(group_commit._queues["s"]) > before)
    recorder.gate.set()
    assert [future.result() for future in futures] == [10, 60, 40, 50, 500, 30]
    assert [requests for _, requests in recorder.groups] == [[1], [6, 4], [5], [50], [3]]


def test_who_went_away_while_waiting_is_not_committed():
    """A request that is cancelled before its group is dropped. In a running group it stays."""
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit)
    first = group_commit.submit("s", 1)
    recorder.entered.wait(10)
    second, third = group_commit.submit("s", 2), group_commit.submit("s", 3)
    assert second.cancel() and not first.cancel()
    recorder.gate.set()
    assert first.result(10) == 10 and third.result(10) == 30
    assert [requests for _, requests in recorder.groups] == [[1], [3]]


def test_closing_waits_for_what_was_submitted():
    """Every accepted request is answered."""

    def commit(key, requests):
        time.sleep(0.002)
        return list(requests)

    group_commit = GroupCommit(commit, group_size_max=2)
    futures = [group_commit.submit(f"s{n % 7}", n) for n in range(100)]
    group_commit.close()
    assert [future.result(0) for future in futures] == list(range(100))


def test_who_waited_too_long_for_a_turn_is_sent_away():
    """An expired request is dropped, and later ones are served."""
    entered, hanging, committed = Event(), Event(), []

    def commit(key, requests):
        entered.set()
        if not committed:
            hanging.wait(5)
        committed.extend(requests)
        return requests

    group_commit = GroupCommit(commit, wait_seconds_max=0.1)
    first = group_commit.submit("k", "first")
    entered.wait(5)
    late = group_commit.submit("k", "late")
    time.sleep(0.2)
    hanging.set()
    assert first.result(5) == "first"
    with pytest.raises(StorageUnavailable):
        late.result(5)
    assert group_commit.submit("k", "new").result(5) == "new"
    assert committed == ["first", "new"]
    group_commit.close()


def test_a_space_that_is_flooded_has_one_turn_before_each_other_space():
    """A new request to another space waits for the running group, and for one group of each
    space that came before.
    """
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, group_size_max=10, committers=1)
    flood = [group_commit.submit("flooded", 0)]
    recorder.entered.wait(10)
    flood += [group_commit.submit("flooded", n) for n in range(1, 500)]
    others = [group_commit.submit(f"quiet-{n}", n) for n in range(5)]
    recorder.gate.set()

    assert len([future.result(10) for future in [*flood, *others]]) == 505
    keys = [key for key, _ in recorder.groups]
    assert keys[:6] == ["flooded", *(f"quiet-{n}" for n in range(5))]
    assert keys[6:] == ["flooded"] * 50


def test_between_two_turns_of_a_space_is_one_of_each_that_waits():
    """Two flooded spaces share the thread, group by group."""
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, group_size_max=10, committers=1)
    futures = [group_commit.submit("a", 0)]
    recorder.entered.wait(10)
    for key in ("a", "b"):
        futures += [group_commit.submit(key, n) for n in range(100)]
    recorder.gate.set()

    assert len([future.result(10) for future in futures]) == 201
    assert [key for key, _ in recorder.groups] == ["a", *(["b", "a"] * 10)]


def test_a_space_of_which_too_much_waits_takes_no_more_and_others_do():
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, weigh=lambda n: n, waiting_weight_max=10)
    futures = [group_commit.submit("flooded", 1)]
    recorder.entered.wait(10)
    futures += [group_commit.submit("flooded", 5), group_commit.submit("flooded", 5)]
    with pytest.raises(QueueFull):
        group_commit.submit("flooded", 1)
    futures.append(group_commit.submit("quiet", 5))
    recorder.gate.set()

    assert [future.result(10) for future in futures] == [10, 50, 50, 50]
    assert group_commit.submit("flooded", 10).result(10) == 100


def test_one_caller_never_has_all_committers():
    """A caller pushes to a hundred spaces that all hang; another caller's push is committed."""
    go_on, started = Event(), []

    def commit(key, requests):
        if key != "modest":
            started.append(key)
            assert go_on.wait(10)
        return list(requests)

    group_commit = GroupCommit(commit, committers=3)
    greedy = [group_commit.submit(f"space {n}", n, "greedy") for n in range(100)]
    wait_until(lambda: len(started) == 2)
    assert group_commit.submit("modest", -1, "modest").result(10) == -1
    assert len(started) == 2
    go_on.set()
    assert [future.result(10) for future in greedy] == list(range(100))
    wait_until(lambda: not group_commit._queues)
    group_commit.close()


def test_callers_with_many_spaces_are_served_in_turn():
    """A caller with many waiting spaces delays another caller by one group for each thread."""
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, committers=1)
    greedy = [group_commit.submit(f"greedy {n}", n, "greedy") for n in range(20)]
    recorder.entered.wait(10)
    modest = group_commit.submit("modest", 100, "modest")
    recorder.gate.set()
    assert modest.result(10) == 1000
    assert [future.result(10) for future in greedy] == [n * 10 for n in range(20)]
    assert [key for key, _ in recorder.groups].index("modest") <= 2


def test_a_caller_s_push_to_a_shared_space_does_not_wait_for_another_s_backlog():
    """A shared space is served when either of its callers may have a thread."""
    go_on, started = Event(), []

    def commit(key, requests):
        started.append(key)
        if key.startswith("greedy"):
            assert go_on.wait(10)
        return list(requests)

    group_commit = GroupCommit(commit, committers=3)
    greedy = [group_commit.submit(f"greedy {n}", n, "greedy") for n in range(50)]
    wait_until(lambda: len(started) == 2)
    greedy.append(group_commit.submit("shared", 50, "greedy"))
    modest = group_commit.submit("shared", 51, "modest")
    assert modest.result(10) == 51
    assert greedy[-1].result(10) == 50  # it is in the same group
    go_on.set()
    assert [future.result(10) for future in greedy] == list(range(51))
    wait_until(lambda: not group_commit._queues)
    assert not (group_commit._callers or group_commit._running or group_commit._ready)
    group_commit.close()


def test_callers_take_turns_in_a_group():
    """A caller with many waiting requests delays another by one request."""
    recorder = Recorder()
    group_commit = GroupCommit(recorder.commit, group_size_max=4)
    futures = [group_commit.submit("s", 0, "greedy")]
    recorder.entered.wait(10)
    futures += [group_commit.submit("s", n, "greedy") for n in range(1, 7)]
    futures += [group_commit.submit("s", n, "modest") for n in (10, 11)]
    recorder.gate.set()
    assert [future.result(10) for future in futures] == [n * 10 for n in (*range(7), 10, 11)]
    assert [requests for _, requests in recorder.groups] == [[0], [1, 10, 2, 11], [3, 4, 5, 6]]


def test_what_is_postponed_is_first_in_the_next_group():
    """The callers that had no turn come before the one that had."""
    groups, entered, go_on = [], Event(), Event()

    def commit(key, requests):
        groups.append(list(requests))
        entered.set()
        assert go_on.wait(10)
        return [requests[0], *(Postponed() for _ in requests[1:])]

    group_commit = GroupCommit(commit, waiting_weight_max=10)
    futures = [group_commit.submit("s", "first")]
    entered.wait(10)
    requests = ("a1", "a2", "b1", "c1")
    futures += [group_commit.submit("s", request, request[0]) for request in requests]
    go_on.set()
    assert [future.result(10) for future in futures] == ["first", *requests]
    assert groups[1:] == [
        ["a1", "b1", "c1", "a2"],
        ["b1", "c1", "a2"],
        ["c1", "a2"],
        ["a2"],
    ]
    wait_until(lambda: not group_commit._queues)
    assert not group_commit._weights


def test_what_is_postponed_waits_with_a_new_deadline_and_is_not_cancelled():
    """The database works, so its wait begins anew. Its outcome may be known to the log."""
    entered, go_on = Event(), Event()

    def commit(key, requests):
        entered.set()
        assert go_on.wait(10)
        time.sleep(0.2)
        return [requests[0], *(Postponed() for _ in requests[1:])]

    group_commit = GroupCommit(commit, wait_seconds_max=0.3)
    first = group_commit.submit("s", 0)
    entered.wait(10)
    later = [group_commit.submit("s", n) for n in range(1, 5)]
    go_on.set()
    assert first.result(10) == 0 and later[0].result(10) == 1
    assert not later[-1].cancel()
    assert [future.result(10) for future in later] == [1, 2, 3, 4]


def test_a_group_that_postpones_all_fails():
    """It would be tried for ever."""
    group_commit = GroupCommit(lambda key, requests: [Postponed() for _ in requests])
    with pytest.raises(AssertionError):
        group_commit.submit("s", 1).result(10)
