"""Group commit: pushes to a space that wait at the same time are appended in one transaction.

A space is one total order, so its appends take turns; with a transaction each, a space could take
one push a disk flush. Here the first push to come is appended at once, alone. Whatever arrives
meanwhile waits, and is the next group. Spaces do not wait for each other, and no push waits longer
than for the group before its own.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

from foldlog.domain.errors import StorageUnavailable

Request = TypeVar("Request")
Reply = TypeVar("Reply")

GROUP_SIZE_MAX = 256  #: requests in a transaction
GROUP_WEIGHT_MAX = 10_000  #: of its requests together, unless the first alone has more
#: groups, of as many keys, that are committed at the same time
COMMITTERS = 4
#: Who has waited longer than this when his turn comes is sent away with nothing stored: the
#: database hangs, and it is known better sooner.
WAIT_SECONDS_MAX = 3.0
CLOSE_POLL_SECONDS = 0.005


class QueueFull(Exception):
    """So much waits for this key already that no more is taken."""


class GroupCommit(Generic[Request, Reply]):
    """Calls `commit(key, requests)` for one group after another of each key, in its own threads.

    `commit` returns an outcome for each request: its reply, or the exception that it raises. If
    `commit` itself raises, every request of the group raises that.
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
        #: of each key that has its turn, or waits for it: what weighs on it
        self._weights: Counter[str] = Counter()
        #: of each key that has its turn, or waits for it: who waits to be committed, until when
        self._queues: dict[str, deque[tuple[Request, Future[Reply], float]]] = {}
        #: the keys that wait for a thread; each thread takes one group of one key at a time
        self._turns: SimpleQueue[str | None] = SimpleQueue()
        self._committers = committers
        self._threads: list[Thread] = []

    def submit(self, key: str, request: Request) -> Future[Reply]:
        """What becomes of the request, after its group's commit. One that is cancelled before it
        has its turn is not committed. Raises `QueueFull`."""
        mine: Future[Reply] = Future()
        weight = self._weigh(request)
        with self._lock:
            waiting, most = self._weights[key], self._waiting_weight_max
            if most is not None and waiting and waiting + weight > most:
                raise QueueFull
            self._weights[key] += weight
            if not self._threads:
                self._start()
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = deque()
                self._turns.put(key)
            queue.append((request, mine, time.monotonic() + self._wait_seconds_max))
        return mine

    def close(self) -> None:
        """Returns when everything that was submitted is answered; nobody may submit any more."""
        while self._queues:
            time.sleep(CLOSE_POLL_SECONDS)
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for number in range(self._committers):
            name = f"foldlog-committer-{number}"
            self._threads.append(Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()

    def _run(self) -> None:
        while (key := self._turns.get()) is not None:
            with self._lock:
                group = self._gather(key, self._queues[key])
                if not group:
                    del self._queues[key], self._weights[key]
            if group:
                self._commit_group(key, group)
                self._turns.put(key)  # behind the other keys that wait

    def _commit_group(self, key: str, group: list[tuple[Request, Future[Reply]]]) -> None:
        outcomes: Sequence[Reply | BaseException]
        try:
            outcomes = self._commit(key, [request for request, _ in group])
            assert len(outcomes) == len(group)
        except BaseException as exc:
            outcomes = [exc] * len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                # One exception may be raised by a whole group; each begins its own traceback.
                future.set_exception(outcome.with_traceback(None))
            else:
                future.set_result(outcome)

    def _gather(
        self, key: str, queue: deque[tuple[Request, Future[Reply], float]]
    ) -> list[tuple[Request, Future[Reply]]]:
        group: list[tuple[Request, Future[Reply]]] = []
        weight, now = 0, time.monotonic()
        while queue and len(group) < self._group_size_max:
            weight += self._weigh(queue[0][0])
            if group and weight > self._group_weight_max:
                break
            request, future, until = queue.popleft()
            self._weights[key] -= self._weigh(request)
            if not future.set_running_or_notify_cancel():
                continue
            if now > until:
                future.set_exception(StorageUnavailable())
            else:
                group.append((request, future))
        return group
