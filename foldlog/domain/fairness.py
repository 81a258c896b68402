"""Shares a scarce resource among callers: a single caller can use only a part of the resource.

Such resources are threads, committers, connections, open streams and bytes of request bodies. A
caller is identified by a *rate key*: the id of an authenticated caller, otherwise the client's IP
address. Clients on a local socket have the empty rate key. For the empty key, only the bound for
all callers together applies.

The classes `Shares`, `Turns` and `FairQueue` contain no locks, so only one thread at a time may
call an instance.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Exceeded(Enum):
    """The bound that a caller would exceed by taking more of a resource. `SIZE` is the bound for
    all callers together, and `SHARE` is the bound for one caller."""

    SIZE = "size"
    SHARE = "share"


class Shares:
    """Counts how much of one resource each caller has taken so far, minus the amounts that were
    released.

    `size` is the maximum for all callers together, and `share` is the maximum for each caller. 0
    means unlimited.
    """

    def __init__(self, size: int = 0, share: int = 0):
        self.size = size
        self.share = share
        self.held = 0
        self._held_by: Counter[str] = Counter()

    def held_by(self, key: str) -> int:
        return self._held_by[key]

    def exceeded(self, key: str, amount: int = 1) -> Exceeded | None:
        """Returns the bound that this caller would exceed by taking `amount` more. Returns `None`
        if the caller may take it."""
        if self.share and key and self._held_by[key] + amount > self.share:
            return Exceeded.SHARE
        if self.size and self.held + amount > self.size:
            return Exceeded.SIZE
        return None

    def take(self, key: str, amount: int = 1) -> Exceeded | None:
        """Adds `amount` to what this caller holds, and returns `None`. If this would exceed a
        bound, the method changes nothing and returns that bound."""
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


class Turns(Generic[T]):
    """Waiting items of several callers, in the order in which they are served: the next item
    belongs to the caller that was served longest ago."""

    def __init__(self) -> None:
        #: waiting items by caller; the caller to serve next comes first
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        """Returns the number of waiting items."""
        return sum(map(len, self._waiting.values()))

    def __bool__(self) -> bool:
        """Returns whether any item is waiting."""
        return bool(self._waiting)

    @property
    def callers(self) -> Iterable[str]:
        """Returns the callers with waiting items. The caller to serve next comes first."""
        return self._waiting.keys()

    def put(self, key: str, item: T) -> None:
        self._waiting.setdefault(key, deque()).append(item)

    def put_back(self, key: str, item: T) -> None:
        """Makes this item the next one. If several items are put back, the first of them must be
        put back last."""
        self._waiting.setdefault(key, deque()).appendleft(item)
        self._waiting.move_to_end(key, last=False)

    def remove(self, key: str, item: T) -> None:
        """Removes a waiting item. Raises `ValueError` if this item does not wait."""
        if key not in self._waiting:
            raise ValueError("this item does not wait")
        self._waiting[key].remove(item)
        if not self._waiting[key]:
            del self._waiting[key]

    def peek(self) -> T:
        """Returns the next item, which goes on waiting. Raises `StopIteration` if no item waits."""
        return next(iter(self._waiting.values()))[0]

    def take(self, key: str | None = None) -> T:
        """Removes and returns the next item, or the next item of the caller `key`. Raises
        `KeyError` if no such item waits."""
        if key is None:
            key, queue = self._waiting.popitem(last=False)
        else:
            queue = self._waiting.pop(key)
        item = queue.popleft()
        if queue:
            self._waiting[key] = queue  # behind the other callers
        return item


class FairQueue(Turns[T]):
    """Distributes waiting items to a fixed number of workers, fairly among callers. If there are
    several workers, a single caller may use all of them except one.

    A free worker takes the next item of the caller that was served longest ago. For example, one
    caller has a thousand waiting items, and another caller adds one item. The next free worker then
    takes the new item, before the rest of the thousand items.
    """

    def __init__(self, workers: int):
        super().__init__()
        self._shares = Shares(workers, max(1, workers - 1))

    @property
    def busy(self) -> int:
        """Returns the number of workers that are in use."""
        return self._shares.held

    def next(self) -> tuple[str, T] | None:
        """Reserves a free worker for the next item. Returns the rate key of the item's caller, and
        the item.

        Returns `None` if no item is waiting, if all workers are busy, or if each caller with a
        waiting item already uses its share of the workers.
        """
        for key in self.callers:
            if self._shares.take(key) is None:
                return key, self.take(key)
        return None

    def reserve(self, key: str) -> bool:
        """Reserves a free worker for this caller without queueing an item. Returns whether a worker
        was reserved. No worker is reserved if any item is waiting, if all workers are busy, or if
        the caller already uses its share of the workers."""
        return not self and self._shares.take(key) is None

    def done(self, key: str) -> None:
        """Frees a worker that was reserved for this caller."""
        self._shares.release(key)
