"""Sends and receives PostgreSQL notifications that tell other processes that a log has new events.

The announcer sends a notification after the commit of an append. It sends the notifications of
several spaces in one transaction, because each transaction with NOTIFY takes a global lock when it
commits. Notifications can get lost, so the processes that receive them also read the database
tables every few seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Condition, Event, Thread

import psycopg
import structlog

from foldlog.infrastructure.postgres.connection.datastore import CONNECTION, Datastore
from foldlog.infrastructure.postgres.connection.errors import DATABASE_ERRORS

log = structlog.get_logger("foldlog.wakeups")

CHANNEL = "foldlog_appended"
NOTIFY = """
SELECT pg_notify(%(channel)s, space || ' ' || head)
  FROM unnest(%(spaces)s::text[], %(heads)s::bigint[]) AS grown (space, head)
"""
#: the pause between two notifications; all appends during a pause share the next notification
PAUSE_SECONDS = 0.01
RECONNECT_SECONDS = 1.0
LISTEN_SECONDS = 1.0  #: the longest time that the listener needs to notice `close`


class _Pending:
    """A queue that passes the new heads of spaces from one thread to another.

    For each space it keeps only the greatest head.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._heads: dict[str, int] = {}
        self.closed = False

    def add(self, space: str, head: int) -> None:
        with self._changed:
            self._heads[space] = max(head, self._heads.get(space, 0))
            self._changed.notify()

    def take(self, timeout_seconds: float | None) -> dict[str, int]:
        with self._changed:
            if not self._heads and not self.closed:
                self._changed.wait(timeout_seconds)
            taken, self._heads = self._heads, {}
            return taken

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class Announcer:
    """Notifies other processes about logs that have new events, from a background thread.

    The thread starts with the first call of `announce`.
    """

    def __init__(self, datastore: Datastore):
        self._datastore = datastore
        self._pending = _Pending()
        self._thread: Thread | None = None

    def announce(self, space: str, head: int) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name="foldlog-announcer", daemon=True)
            self._thread.start()
        self._pending.add(space, head)

    def close(self) -> None:
        self._pending.close()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        # Heads that were added before `close` are still sent, because a command ends right away.
        while (heads := self._pending.take(None)) or not self._pending.closed:
            if heads:
                params = {"channel": CHANNEL, "spaces": list(heads), "heads": list(heads.values())}
                # An unsent notification is dropped, because followers also poll.
                with suppress(*DATABASE_ERRORS), self._datastore.rows() as cursor:
                    cursor.execute(NOTIFY, params)
                time.sleep(PAUSE_SECONDS)


class Wakeups:
    """Receives notifications about new events from all processes, in a background thread."""

    def __init__(self, url: str):
        self._url = url
        self._pending = _Pending()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="foldlog-listener", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def wait(self, timeout_seconds: float) -> dict[str, int]:
        """Waits until at least one log has new events, and returns {space: new head} of these logs.

        If `timeout_seconds` pass without a notification, or if the object is closed, the method
        returns an empty dict.
        """
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
                        for notification in conn.notifies(timeout=LISTEN_SECONDS):
                            space, _, head = notification.payload.partition(" ")
                            if head.isdecimal():  # any role of the database can send a notification
                                self._pending.add(space, int(head))
            except psycopg.Error as exc:
                log.warning("listener_disconnected", error=str(exc))
                self.sleep(RECONNECT_SECONDS)
