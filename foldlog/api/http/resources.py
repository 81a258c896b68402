"""Defines the resources that all requests of one web worker share: threads, the counter of memory
for request bodies, and the watches for new events."""

from __future__ import annotations

from contextlib import ExitStack

from foldlog.domain.fairness import Shares
from foldlog.domain.limits import LIMITS, Limits

from .log_watch import LogWatches
from .threads import ADMISSION_THREADS, COMPRESSION_THREADS, FairThreads


class Resources:
    """A context manager for the resources that all requests of a web worker share. On exit it waits
    for the functions that still run in threads.

    `readers` is the number of threads for reading. Each of them uses one database connection, so
    `readers` should be at most the number of connections that are available for reads.
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
