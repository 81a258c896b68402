"""The one rule by which callers share a resource that is scarce: no caller ever holds all of it.

Threads, committers, connections, open streams and bytes of bodies follow this rule. A caller is a
*rate key*: the id of an authenticated caller, else the address of the client. The empty key stands
for a client without an address (a local socket); it has no share of its own to exceed.

Both classes are plain bookkeeping without a lock; the owner of an instance guards it.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Exceeded(Enum):
    """The bound that a request for more would exceed."""

    SIZE = "size"
    SHARE = "share"


class Shares:
    """Counts how much each caller holds of one resource.

    `size` bounds all callers together, `share` bounds each caller; 0 means no bound.
    """

    def __init__(self, size: int = 0, share: int = 0):
        self.size = size
        self.share = share
        self.held = 0
        self._held_by: Counter[str] = Counter()

    def held_by(self, key: str) -> int:
        return self._held_by[key]

    def exceeded(self, key: str, amount: int = 1) -> Exceeded | None:
        """Returns the bound that `amount` more would exceed; `None` if there is room."""
        if self.share and key and self._held_by[key] + amount > self.share:
            return Exceeded.SHARE
        if self.size and self.held + amount > self.size:
            return Exceeded.SIZE
        return None

    def take(self, key: str, amount: int = 1) -> Exceeded | None:
        """Takes `amount` if there is room, else returns the bound that it would exceed."""
        exceeded = self.exceeded(key, amount)
        if exceeded is None:
            self.held += amount
            self._held_by[key] += amount
        return exceeded

    def release(self, key: str, amount: int = 1) -> None:
        self.held -= amount
        self._held_by[key] -= amount
        if not self._held_by[key]:
            del self._held_by[key]


class FairQueue(Generic[T]):
    """Workers shared by callers: each caller uses all workers but one at most, and waits in turn.

    A free worker takes the next item of the caller that was served longest ago. So a caller with a
    thousand waiting items delays another caller by one item.
    """

    def __init__(self, workers: int):
        self._shares = Shares(workers, max(1, workers - 1))
        #: waiting items by caller; the caller to serve next comes first
        self._waiting: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        """The number of items that wait."""
        return sum(map(len, self._waiting.values()))

    def __bool__(self) -> bool:
        """Whether any item waits."""
        return bool(self._waiting)

    @property
    def busy(self) -> int:
        """The number of workers in use."""
        return self._shares.held

    def put(self, key: str, item: T) -> None:
        self._waiting.setdefault(key, deque()).append(item)

    def remove(self, key: str, item: T) -> None:
        """Takes back an item that still waits. Raises `ValueError` if it does not wait."""
        if key not in self._waiting:
            raise ValueError("this item does not wait")
        self._waiting[key].remove(item)
        if not self._waiting[key]:
            del self._waiting[key]

    def next(self) -> tuple[str, T] | None:
        """Gives a free worker the next item; `None` if all are busy or no caller may have one."""
        for key in self._waiting:
            if self._shares.take(key) is None:
                queue = self._waiting.pop(key)
                item = queue.popleft()
                if queue:
                    self._waiting[key] = queue  # behind the other callers
                return key, item
        return None

    def take(self, key: str) -> bool:
        """Takes a free worker at once, if no item waits and the caller's share allows it."""
        return not self._waiting and self._shares.take(key) is None

    def done(self, key: str) -> None:
        """Frees the worker that served an item of this caller."""
        self._shares.release(key)
