"""Keeps the `LogTailCache` of this process up to date when other processes append events.

A PostgreSQL notification tells the follower about each append. Notifications can get lost. So every
`LOOK_SECONDS` the follower also reads the heads of all cached and watched spaces from the database,
and compares them with the cache. This comparison also detects a database that was restored from a
backup.
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
   AND NOT importing
 ORDER BY space
"""


class Follower:
    """A thread that adds events of other processes to the tail cache of this process.

    When other processes have added events to a space that readers watch, the thread calls
    `read_on(space)`. The function `read_on` must read the new events from the database into the
    cache. Only web processes start the thread. Commands such as `foldlog export` run without the
    thread.
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
