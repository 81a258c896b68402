"""Everything that the requests of one worker share: threads, bytes for bodies, watches."""

from __future__ import annotations

from contextlib import ExitStack

from foldlog.domain.fairness import Shares
from foldlog.domain.limits import LIMITS, Limits

from .log_watch import LogWatches
from .threads import ADMISSION_THREADS, COMPRESSION_THREADS, FairThreads


class Resources:
    """A context manager: leaving it waits for calls that still run in threads.

    Each reading thread uses one database connection, so `readers` is at most the number of
    connections that are left for reads.
    """

    def __init__(self, readers: int, limits: Limits = LIMITS):
        self.limits = limits
        self.reading = FairThreads(readers, "foldlog-read")
        self.admission = FairThreads(ADMISSION_THREADS, "foldlog-admission")
        self.compression = FairThreads(COMPRESSION_THREADS, "foldlog-compression")
        #: bytes of request bodies in memory, by caller
        self.bodies = Shares(limits.bodies_bytes_max, limits.bodies_bytes_per_caller_max)
        self.log_watches = LogWatches()

    def __enter__(self) -> Resources:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            for threads in (self.reading, self.admission, self.compression):
                closing.callback(threads.close)
