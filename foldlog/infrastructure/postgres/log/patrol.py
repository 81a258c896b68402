"""Counts the events of all logs, a few at a time, to find holes that no reader meets."""

from __future__ import annotations

from threading import Event

import structlog

from foldlog.domain.errors import LogIncomplete, NotFound, Unavailable
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS

from .alarms import LogAlarms

log = structlog.get_logger("foldlog.patrol")

PAUSE_SECONDS = 1.0
#: the bounds of one step, which takes a few ms
EVENTS_PER_STEP = 20_000
SPACES_PER_STEP = 100

SELECT_NEXT_SPACES = """
SELECT space
  FROM spaces
 WHERE space > %(space)s
   AND alarm IS NULL
 ORDER BY space
 LIMIT %(limit)s
"""


class Patrol:
    """Walks through all logs again and again, and raises the alarm of a log with missing events."""

    def __init__(self, datastore: Datastore):
        self._datastore = datastore
        self._alarms = LogAlarms(datastore)
        self._spaces: list[str] = []  #: the next spaces, the nearest one last
        self._last = ""  #: the last space of the last list
        self._after = 0  #: how far the nearest space was counted

    def run(self, closing: Event) -> None:
        """Walks until the event `closing` is set. Call this in a separate thread."""
        while not closing.wait(PAUSE_SECONDS):
            try:
                self.step()
            except (*DATABASE_ERRORS, Unavailable) as exc:
                log.warning("patrol_waits_for_the_database", error=str(exc))
            except Exception:  # the thread must go on, because its end would go unnoticed
                log.exception("patrol_failed")

    def step(self) -> None:
        """Counts the next `EVENTS_PER_STEP` events, of `SPACES_PER_STEP` spaces at most."""
        events = EVENTS_PER_STEP
        for _ in range(SPACES_PER_STEP):
            if not self._spaces and not self._find_spaces():
                return
            before = self._after
            self._after = self._count(self._spaces[-1], events)
            if self._after == 0:
                self._spaces.pop()
                continue
            events -= self._after - before
            if events <= 0:
                return

    def _count(self, space: str, events: int) -> int:
        """Counts more events of a space. Returns the last counted seq, or 0 at the end."""
        try:
            return self._alarms.look(space, after=self._after, events=events) or 0
        except (LogIncomplete, NotFound):
            return 0  # the alarm is raised, or the space was removed

    def _find_spaces(self) -> bool:
        params = {"space": self._last, "limit": SPACES_PER_STEP}
        found = [space for (space,) in self._datastore.fetch_all(SELECT_NEXT_SPACES, params)]
        self._last = found[-1] if len(found) == SPACES_PER_STEP else ""
        self._spaces = found[::-1]
        return bool(found)
