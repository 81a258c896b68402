"""Keeps the `LogTailCache` of a process up to date with the appends of all other processes.

PostgreSQL notifications announce those appends at once. The follower also reads the heads of all
cached and watched spaces every `LOOK_SECONDS`. This second way finds appends whose notification was
lost, detects a database that was restored from a backup, and confirms the other cached heads.
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

from .tail_cache import LogEnd, LogTailCache
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
    """A thread that updates the tail cache when other processes append events.

    `read_on(space)` is a method of the event store that reads new events into the cache. A web
    process calls `start`. Commands such as `foldlog export` do not need a follower.
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
                    if self._tails.announce(space, head):
                        self._read_on(space)
                if time.monotonic() >= look_at:
                    self._look()
                    look_at = time.monotonic() + LOOK_SECONDS
            except (*DATABASE_ERRORS, Unavailable) as exc:
                # The heads cannot be confirmed now, so the cache must not answer.
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
            if self._tails.confirm(space, LogEnd(of_log, head, [], mark, now)):
                self._read_on(space)
