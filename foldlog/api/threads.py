"""The threads of the event loop's door, each kind for itself.

Whoever is let in, and whoever asks whether the service is ready, waits for nobody who reads; and
nobody waits for a database behind answers that are compressed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

ADMISSION_THREADS = 3
COMPRESSION_THREADS = 2


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
