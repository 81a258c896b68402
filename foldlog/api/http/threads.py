"""The threads of the event loop's door, each kind for itself; and turns of those of Flask's.

Whoever is let in, and whoever asks whether the service is ready, waits for nobody who reads; and
nobody waits for a database behind answers that are compressed. Whoever reads leaves connections to
the database to those who commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Condition

from foldlog.domain.errors import StorageUnavailable

ADMISSION_THREADS = 3
COMPRESSION_THREADS = 2
#: for a turn, after which it is known better that there is none; and for one in the midst of a
#: download, which would be cut
TURN_SECONDS_MAX, NEXT_TURN_SECONDS_MAX = 3.0, 30.0


class Turns:
    """So many threads turn to the database at a time; those of one caller leave room for another's.

    The others wait, in no order.
    """

    def __init__(self, most: int):
        self._most = most
        self._of_one_most = max(1, most - 1)
        self._taken = 0
        self._taken_by: Counter[str] = Counter()
        self._changed = Condition()

    @contextmanager
    def one(self, caller: str, seconds_max: float = TURN_SECONDS_MAX) -> Iterator[None]:
        """Raises `StorageUnavailable` if none comes in time."""

        def is_free() -> bool:
            return self._taken < self._most and self._taken_by[caller] < self._of_one_most

        with self._changed:
            if not self._changed.wait_for(is_free, seconds_max):
                raise StorageUnavailable("too many calls wait for the database")
            self._taken += 1
            self._taken_by[caller] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._taken_by[caller] -= 1
                if not self._taken_by[caller]:
                    del self._taken_by[caller]
                self._changed.notify_all()


class Threads:
    """`readers` wait for the database, and so need not be more than there are connections."""

    def __init__(self, readers: int):
        self.reading = ThreadPoolExecutor(readers, thread_name_prefix="foldlog-web")
        self.admission = ThreadPoolExecutor(
            ADMISSION_THREADS, thread_name_prefix="foldlog-admission"
        )
        self.compression = ThreadPoolExecutor(
            COMPRESSION_THREADS, thread_name_prefix="foldlog-compression"
        )

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as ended:
            for pool in (self.reading, self.admission, self.compression):
                ended.enter_context(pool)
