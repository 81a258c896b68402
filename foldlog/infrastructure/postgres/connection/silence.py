"""Asks PostgreSQL whether it still works on a statement whose answer does not come.

A connection can fall silent while both of its ends stay alive: a proxy or a firewall has lost the
statement or its answer. Without a question this looks like a long statement, and the caller would
wait until its deadline. A second connection sees the difference: a backend that works on a
statement is on the processor, or waits for a lock or a disk. A backend that waits for its client,
while the client waits for the backend, will never answer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

#: how long an answer may stay away before the first question, and between two questions
SILENT_SECONDS = 1.0
#: Two answers in a row must agree, because an answer can be on its way during the first one.
AGREEING = 2
#: the longest time for a new connection, and then for its statements
ASK_SECONDS_MAX = 2

# The condition is also true if the backend is gone, and false if its row is hidden from this role.
SELECT_IS_LOST = """
SELECT NOT EXISTS (
    SELECT
      FROM pg_stat_activity
     WHERE pid = %(pid)s
       AND wait_event_type IS DISTINCT FROM 'Client'
)
"""

# The backend may hold locks for which the next connection waits.
END_BACKEND = """
SELECT pg_terminate_backend(pid)
  FROM pg_stat_activity
 WHERE pid = %(pid)s
   AND usename = current_user
   AND wait_event_type = 'Client'
"""


class Questions:
    """Asks about silent connections of one pool, in a thread beside the waiting one.

    There is one question at a time, so that a slow database gets at most one more connection from
    each pool. `connect` opens a connection to the server of the given one. This connection must
    end each of its statements within `ASK_SECONDS_MAX`.
    """

    def __init__(self, connect: Callable[[Connection[Any]], Connection[Any]]):
        self._connect = connect
        self._asking = Lock()

    def ask(self, about: Connection[Any], *, is_last: bool) -> Future[bool] | None:
        """Asks whether the answer to the statement of `about` is lost.

        If `is_last` is true and the answer is lost, the method also ends the backend. Returns
        `None` if another question is open. The result is `False` if the question has failed, for
        example because the network is down: then nothing is known.
        """
        if not self._asking.acquire(blocking=False):
            return None
        answer: Future[bool] = Future()
        Thread(target=self._ask, args=(about, is_last, answer), daemon=True).start()
        return answer

    def _ask(self, about: Connection[Any], is_last: bool, answer: Future[bool]) -> None:
        is_lost = False
        try:
            pid = {"pid": about.info.backend_pid}
            with suppress(psycopg.Error), self._connect(about) as conn:
                cursor = conn.cursor(row_factory=tuple_row)
                [(is_lost,)] = cursor.execute(SELECT_IS_LOST, pid).fetchall()
                if is_lost and is_last:
                    conn.execute(END_BACKEND, pid)
        finally:
            self._asking.release()
            answer.set_result(is_lost)


class Silence:
    """The time during which a connection has waited for the server without a byte from it."""

    def __init__(self, questions: Questions, connection: Connection[Any], now: float):
        self._questions = questions
        self._connection = connection
        self._asking_at = now + SILENT_SECONDS
        self._answer: Future[bool] | None = None
        self._agreeing = 0

    def is_lost(self, now: float) -> bool:
        """Tells whether the awaited answer is lost. The caller asks again and again.

        `now` is a time of the monotonic clock, in seconds.
        """
        if self._answer is None:
            if now >= self._asking_at:
                is_last = self._agreeing == AGREEING - 1
                self._answer = self._questions.ask(self._connection, is_last=is_last)
        elif self._answer.done():
            self._agreeing = self._agreeing + 1 if self._answer.result() else 0
            self._answer = None
            self._asking_at = now + SILENT_SECONDS
        return self._agreeing >= AGREEING
