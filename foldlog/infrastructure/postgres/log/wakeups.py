"""Telling every process at once that a log has grown.

A notification is sent after the append's commit, in a transaction of its own and several spaces at
a time, because NOTIFY takes a lock that is global at commit. One that is lost costs a follower one
poll interval, never an event: what is to be done is read from the tables.
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
#: between two notifications of a process: a busy one tells of many appends at once
PAUSE_SECONDS = 0.01
RECONNECT_SECONDS = 1.0
LISTEN_SECONDS = 1.0  #: how long `close` may have to wait for the listener


class _Pending:
    """Heads of spaces that one thread notes and another takes."""

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
    """Sends the notifications of one process; its thread starts with the first one."""

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
        # What was added last is sent after the end: a command has no other turn.
        while (heads := self._pending.take(None)) or not self._pending.closed:
            if heads:
                names = {"channel": CHANNEL, "spaces": list(heads), "heads": list(heads.values())}
                # Followers poll as well, so what cannot be sent now need not be sent later.
                with suppress(*DATABASE_ERRORS), self._datastore.rows() as cursor:
                    cursor.execute(NOTIFY, names)
                time.sleep(PAUSE_SECONDS)


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

    def wait(self, timeout_seconds: float) -> dict[str, int]:
        """The spaces that have grown, with their heads; early when there are some, or closed."""
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
                            space, _, head = notice.payload.partition(" ")
                            if head.isdecimal():  # anybody with rights on the database can notify
                                self._pending.add(space, int(head))
            except psycopg.Error as exc:
                log.warning("listener_disconnected", error=str(exc))
                self.sleep(RECONNECT_SECONDS)
