"""Group commit: appends all pushes that wait for the same space in one transaction.

Appends to one space run one after another, because the events of a space have one order. If each
push had its own transaction, it would wait until all earlier transactions are flushed to the disk.
Therefore the first push is appended at once, and all pushes that arrive during its transaction form
the next group. Groups of different spaces are committed at the same time, in different threads.

The callers take turns in a group: the first push is that of the caller that was served longest ago,
then one push of each other caller follows, and so on. A group whose checks take long ends early.
The rest of its pushes begins the next group, so a caller waits for one expensive push of each other
caller at most.

A small number of threads, which all callers share, commits the groups. If a caller pushes to many
spaces at once, this caller can use all threads except one, so other callers still get a thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, NamedTuple, TypeVar

from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.fairness import FairQueue, Turns

Request = TypeVar("Request")
Reply = TypeVar("Reply")

GROUP_SIZE_MAX = 256  #: requests in a transaction
#: the total weight of a group; a heavier request forms a group of its own
GROUP_WEIGHT_MAX = 10_000
#: threads, each of which commits one group at a time
COMMITTERS = 4
#: A request that has waited longer fails with `StorageUnavailable`, because the database hangs
#: and the caller should learn this soon.
WAIT_SECONDS_MAX = 3.0
CLOSE_POLL_SECONDS = 0.005


class QueueFull(Exception):
    """Raised when a new request is rejected, because too many requests with its key already wait.

    `waiting_weight_max` limits the total weight of the waiting requests of one key. The function
    `weigh`, a parameter of `GroupCommit`, returns the weight of a request.
    """


class Postponed(Exception):
    """The outcome of a request that belongs into the next group, because its own group has done
    enough work already. The first request of a group must have another outcome."""


class _Waiting(NamedTuple, Generic[Request, Reply]):
    """A request in the queue of a key, with the future for its outcome, and with its deadline.

    `caller` is the rate key of the caller that has sent the request (see `domain.fairness`).
    """

    request: Request
    outcome: Future[Reply]
    until: float  #: the deadline, by the monotonic clock
    caller: str


class GroupCommit(Generic[Request, Reply]):
    """Collects requests with the same key in groups, and commits each group by one function call.

    For each group it calls `commit(key, requests)`, in one of its own threads. For the same key,
    only one call runs at a time. `commit` returns a list with the outcome of each request: a reply
    or an exception. A request with the outcome `Postponed` waits again, before all others. If
    `commit` itself raises an exception, every request of the group gets this exception.
    """

    def __init__(
        self,
        commit: Callable[[str, Sequence[Request]], Sequence[Reply | Exception]],
        *,
        weigh: Callable[[Request], int] = lambda request: 1,
        group_size_max: int = GROUP_SIZE_MAX,
        group_weight_max: int = GROUP_WEIGHT_MAX,
        committers: int = COMMITTERS,
        wait_seconds_max: float = WAIT_SECONDS_MAX,
        waiting_weight_max: int | None = None,
    ):
        self._commit = commit
        self._weigh = weigh
        self._group_weight_max = group_weight_max
        self._group_size_max = group_size_max
        self._wait_seconds_max = wait_seconds_max
        self._waiting_weight_max = waiting_weight_max
        self._lock = Lock()
        #: the total weight of the waiting requests of each active key
        self._weights: Counter[str] = Counter()
        #: the waiting requests of each active key
        self._queues: dict[str, Turns[_Waiting[Request, Reply]]] = {}
        #: the keys that wait for a thread, each under every caller that has a request in its queue
        self._ready: FairQueue[str] = FairQueue(committers)
        #: the callers under which each key waits
        self._callers: dict[str, set[str]] = {}
        #: the keys whose group is being committed
        self._running: set[str] = set()
        #: Wakes one thread for each item: `True` to look for a key, `False` to end.
        self._wakeups: SimpleQueue[bool] = SimpleQueue()
        self._committers = committers
        self._threads: list[Thread] = []

    def submit(self, key: str, request: Request, caller: str = "") -> Future[Reply]:
        """Queues a request, and returns a future for the outcome of the request.

        The future gets its result after the request's group was committed. If the future is
        cancelled before this commit begins, the request is dropped.

        `caller` is the rate key of the request's caller (see `domain.fairness`). The threads are
        shared fairly between the callers.

        Raises `QueueFull` if the total weight of the requests that wait for this key would exceed
        `waiting_weight_max`.
        """
        outcome: Future[Reply] = Future()
        weight = self._weigh(request)
        with self._lock:
            waiting, weight_max = self._weights[key], self._waiting_weight_max
            if weight_max is not None and waiting and waiting + weight > weight_max:
                raise QueueFull
            self._weights[key] += weight
            if not self._threads:
                self._start()
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = Turns()
            if key not in self._running and self._wait_for_thread(caller, key):
                self._wakeups.put(True)
            until = time.monotonic() + self._wait_seconds_max
            queue.put(caller, _Waiting(request, outcome, until, caller))
        return outcome

    def close(self) -> None:
        """Waits until all queued requests have an outcome, and then ends the threads.

        Call it after the last call of `submit`.
        """
        while self._queues:
            time.sleep(CLOSE_POLL_SECONDS)
        for _ in self._threads:
            self._wakeups.put(False)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for number in range(self._committers):
            name = f"foldlog-committer-{number}"
            self._threads.append(Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()

    def _run(self) -> None:
        """Runs in each thread: commits one group after another until `close` is called."""
        while self._wakeups.get():
            with self._lock:
                ready = self._ready.next()
                if ready is None:  # every waiting caller uses its share already
                    continue
                caller, key = ready
                for other in self._callers.pop(key) - {caller}:
                    self._ready.remove(other, key)
                self._running.add(key)
                group = self._gather(key)
            postponed = self._commit_group(key, group) if group else []
            with self._lock:
                self._put_back(key, postponed)
                self._end_turn(caller, key)

    def _end_turn(self, caller: str, key: str) -> None:
        """Ends the work on a group of a key, so that the next group of this key can be committed.

        If more requests wait for this key, the key is queued again, behind the other waiting keys.
        Otherwise the queue and the weight of the key are deleted.
        """
        self._ready.done(caller)
        self._running.discard(key)
        if queue := self._queues[key]:
            for waiting in queue.callers:
                self._wait_for_thread(waiting, key)  # after the other waiting keys
        else:
            del self._queues[key], self._weights[key]
        if self._ready:
            self._wakeups.put(True)

    def _wait_for_thread(self, caller: str, key: str) -> bool:
        """Adds the pair of a caller and a key to the queue of pairs that wait for a thread.

        Several callers can have waiting requests with the same key. The queue then contains one
        pair for each of these callers, because the threads are shared fairly between callers.
        Returns `True` if the pair was added, and `False` if the queue already contained it.
        """
        callers = self._callers.setdefault(key, set())
        if caller in callers:
            return False
        callers.add(caller)
        self._ready.put(caller, key)
        return True

    def _commit_group(
        self, key: str, group: list[_Waiting[Request, Reply]]
    ) -> list[_Waiting[Request, Reply]]:
        """Commits one group, and sets the result or the exception of each request's future. Returns
        the postponed requests."""
        outcomes: Sequence[Reply | BaseException]
        try:
            outcomes = self._commit(key, [waiting.request for waiting in group])
            assert len(outcomes) == len(group)
            assert not isinstance(outcomes[0], Postponed)
        except BaseException as exc:
            outcomes = [exc] * len(group)
        postponed = []
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Postponed):
                postponed.append(waiting)
            elif isinstance(outcome, BaseException):
                # A whole group may share one exception. Each caller extends its traceback anew.
                waiting.outcome.set_exception(outcome.with_traceback(None))
            else:
                waiting.outcome.set_result(outcome)
        return postponed

    def _put_back(self, key: str, postponed: list[_Waiting[Request, Reply]]) -> None:
        """Puts the postponed requests of a group before all others, with a new deadline: the
        database has just worked."""
        until = time.monotonic() + self._wait_seconds_max
        for waiting in reversed(postponed):
            self._weights[key] += self._weigh(waiting.request)
            self._queues[key].put_back(waiting.caller, waiting._replace(until=until))

    def _gather(self, key: str) -> list[_Waiting[Request, Reply]]:
        """Removes the requests of the next group from a key's queue, and returns them.

        The number and the total weight of the requests in a group are limited. A cancelled request
        is dropped, unless it was in a group before: its commit had begun. If the deadline of a
        request has passed, its future gets the error `StorageUnavailable`, and the request is left
        out.
        """
        queue = self._queues[key]
        group: list[_Waiting[Request, Reply]] = []
        weight, now = 0, time.monotonic()
        while queue and len(group) < self._group_size_max:
            weight += self._weigh(queue.peek().request)
            if group and weight > self._group_weight_max:
                break
            waiting = queue.take()
            self._weights[key] -= self._weigh(waiting.request)
            outcome = waiting.outcome
            if not outcome.running() and not outcome.set_running_or_notify_cancel():
                continue
            if now > waiting.until:
                outcome.set_exception(StorageUnavailable())
            else:
                group.append(waiting)
        return group
