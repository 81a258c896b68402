"""Keeps a process's `LogTailCache` at the ends of the logs, whoever appends.

Notifications tell of the appends of other processes at once. Every `LOOK_SECONDS` the heads of all
spaces that are kept or waited for are looked at, whatever was told: that bounds what a lost
notification costs, notices a database that was restored, and confirms what has not moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from threading import Thread

import structlog

from foldlog.domain.errors import Unavailable
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS

from .tail_cache import LogTailCache
from .wakeups import Wakeups

log = structlog.get_logger("foldlog.following")

LOOK_SECONDS = 2.0
SPACES_PER_LOOK = 1_000

SELECT_HEADS = """
SELECT space, log::text, head, mark
  FROM spaces
 WHERE space = ANY(%(spaces)s::text[])
 ORDER BY space
"""


class Follower:
    """A thread that reads what the tails lack; `read_on(space)` is the store's.

    It starts with `start`, which the process that serves calls: a command needs no follower.
    """

    def __init__(self, datastore: Datastore, tails: LogTailCache, read_on: Callable[[str], None]):
        self._datastore = datastore
        self._tails = tails
        self._read_on = read_on
        self._wakeups: Wakeups | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        self._wakeups = Wakeups(self._datastore.url)
        self._thread = Thread(
            target=self._run, args=(self._wakeups,), name="foldlog-follower", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        if self._wakeups is not None and self._thread is not None:
            self._wakeups.close()
            self._thread.join()

    def _run(self, wakeups: Wakeups) -> None:
        look_at = time.monotonic() + LOOK_SECONDS
        while not wakeups.closed:
            grown = wakeups.wait(max(0.0, look_at - time.monotonic()))
            try:
                for space, head in grown.items():
                    if self._tails.tell(space, head):
                        self._read_on(space)
                if time.monotonic() >= look_at:
                    self._look()
                    look_at = time.monotonic() + LOOK_SECONDS
            except (*DATABASE_ERRORS, Unavailable) as exc:
                # Nothing is confirmed meanwhile, so nothing will be answered from what is kept.
                log.warning("follower_waits_for_the_database", error=str(exc))
                self._tails.clear()
                wakeups.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        spaces = iter(self._tails.spaces())
        while part := list(islice(spaces, SPACES_PER_LOOK)):
            self._look_at(part)

    def _look_at(self, spaces: list[str]) -> None:
        now = time.monotonic()
        with self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_HEADS, {"spaces": spaces}, prepare=True).fetchall()
        found = {space: rest for space, *rest in rows}
        for space in spaces:
            if space not in found:
                self._tails.forget(space)
        for space, (of_log, head, mark) in found.items():
            if self._tails.confirm(space, of_log, head, mark, now):
                self._read_on(space)
