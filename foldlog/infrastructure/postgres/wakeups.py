"""Telling projectors at once that a log has grown.

A notification is sent after the append's commit, in a transaction of its own and several spaces at
a time, because NOTIFY takes a lock that is global at commit. One that is lost costs a follower one
poll interval, never an event: what is to be done is read from the tables.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Condition, Event, Thread

import psycopg
import structlog

from .datastore import CONNECTION, Datastore
from .errors import DATABASE_ERRORS

log = structlog.get_logger("foldlog.wakeups")

CHANNEL = "foldlog_appended"
NOTIFY = "SELECT pg_notify(%(channel)s, space) FROM unnest(%(spaces)s::text[]) AS grown (space)"
RECONNECT_SECONDS = 1.0
LISTEN_SECONDS = 1.0  #: how long `close` may have to wait for the listener


class _Pending:
    """A set of spaces that one thread fills and another empties."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._spaces: set[str] = set()
        self.closed = False

    def add(self, *spaces: str) -> None:
        with self._changed:
            self._spaces.update(spaces)
            self._changed.notify()

    def take(self, timeout_seconds: float | None) -> set[str]:
        with self._changed:
            if not self._spaces and not self.closed:
                self._changed.wait(timeout_seconds)
            taken, self._spaces = self._spaces, set()
            return taken

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class Announcer:
    """Sends the notifications of one process; its thread starts with the first one."""

    def __init__(self, datastore: Datastore):
        self._datastore = datastore
        self._pending = _Pending()
        self._thread: Thread | None = None

    def announce(self, space: str) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name="foldlog-announcer", daemon=True)
            self._thread.start()
        self._pending.add(space)

    def close(self) -> None:
        self._pending.close()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._pending.closed:
            spaces = self._pending.take(None)
            if spaces:
                # Followers poll as well, so what cannot be sent now need not be sent later.
                with suppress(*DATABASE_ERRORS), self._datastore.rows() as cursor:
                    cursor.execute(NOTIFY, {"channel": CHANNEL, "spaces": sorted(spaces)})


class Wakeups:
    """Receives the notifications of all processes."""

    def __init__(self, url: str):
        self._url = url
        self._pending = _Pending()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="foldlog-listener", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def wait(self, timeout_seconds: float) -> set[str]:
        """The spaces that have grown; returns early when there are some, or when closed."""
        return self._pending.take(timeout_seconds)

    def sleep(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def close(self) -> None:
        self._closing.set()
        self._pending.close()

    def _run(self) -> None:
        while not self.closed:
            try:
                with psycopg.connect(self._url, autocommit=True, **CONNECTION) as conn:
                    conn.execute(f"LISTEN {CHANNEL}")
                    while not self.closed:
                        for notice in conn.notifies(timeout=LISTEN_SECONDS):
                            self._pending.add(notice.payload)
            except psycopg.Error as exc:
                log.warning("listener_disconnected", error=str(exc))
                self.sleep(RECONNECT_SECONDS)
