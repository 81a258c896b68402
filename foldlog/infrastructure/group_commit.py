"""Group commit: pushes to a space that wait at the same time are appended in one transaction.

A space is one total order, so its appends take turns; with a transaction each, a space could take
one push a disk flush. Here the first push to come leads: it appends itself alone. Whatever arrives
meanwhile waits, and when the leader is done, the first of those leads all of them. There is no
thread of its own, and no push waits longer than for the group before its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")

GROUP_SIZE_MAX = 256  #: requests in a transaction
GROUP_WEIGHT_MAX = 10_000  #: of its requests together, unless the first alone has more


class _Waiting(Generic[Request, Reply]):
    def __init__(self, request: Request):
        self.request = request
        self.woken = Event()
        self.outcome: Reply | BaseException | None = None  #: None when woken: lead the next group


class GroupCommit(Generic[Request, Reply]):
    """Calls `commit(key, requests)` for one group after another of each key.

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
    ):
        self._commit = commit
        self._weigh = weigh
        self._group_weight_max = group_weight_max
        self._group_size_max = group_size_max
        self._lock = Lock()
        #: of each key that somebody leads just now: who waits for the next group
        self._queues: dict[str, deque[_Waiting[Request, Reply]]] = {}

    def submit(self, key: str, request: Request) -> Reply:
        mine: _Waiting[Request, Reply] = _Waiting(request)
        with self._lock:
            queue = self._queues.get(key)
            leads = queue is None
            if queue is None:
                self._queues[key] = deque()
            else:
                queue.append(mine)
        if not leads:
            self._wait(key, mine)
            leads = mine.outcome is None
        if leads:
            self._lead(key, mine)
        if isinstance(mine.outcome, BaseException):
            # One exception may be raised by a whole group; each begins its own traceback.
            raise mine.outcome.with_traceback(None)
        assert mine.outcome is not None
        return mine.outcome

    def _wait(self, key: str, mine: _Waiting[Request, Reply]) -> None:
        try:
            mine.woken.wait()
        except BaseException:  # a killed greenlet: it must not take the lead with it
            with self._lock:
                queue = self._queues.get(key)
                if queue is not None and mine in queue:
                    queue.remove(mine)
                elif mine.woken.is_set() and mine.outcome is None:
                    self._hand_on(key)
            raise

    def _lead(self, key: str, mine: _Waiting[Request, Reply]) -> None:
        with self._lock:
            group = self._gather(mine, self._queues[key])
        outcomes: Sequence[Reply | BaseException]
        try:
            outcomes = self._commit(key, [waiting.request for waiting in group])
            assert len(outcomes) == len(group)
        except BaseException as exc:
            outcomes = [exc] * len(group)
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.outcome = outcome
        with self._lock:
            self._hand_on(key)
        for waiting in group:
            waiting.woken.set()

    def _gather(
        self, mine: _Waiting[Request, Reply], queue: deque[_Waiting[Request, Reply]]
    ) -> list[_Waiting[Request, Reply]]:
        group, weight = [mine], self._weigh(mine.request)
        while queue and len(group) < self._group_size_max:
            weight += self._weigh(queue[0].request)
            if weight > self._group_weight_max:
                break
            group.append(queue.popleft())
        return group

    def _hand_on(self, key: str) -> None:
        """Makes the first who waits the next leader. Called with the lock held."""
        queue = self._queues[key]
        if queue:
            queue.popleft().woken.set()
        else:
            del self._queues[key]
