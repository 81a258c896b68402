"""Defines a psycopg connection with a deadline that works even if the server has stopped answering.

A database server can stop answering while its connections stay open. Examples are a suspended
server, and a network that drops all packets. The server's statement timeout then has no effect, and
connections over Unix sockets have no TCP timeouts. So this module sets a deadline in the client.
After the deadline the client shuts the socket down, and the running statement fails with an error
that reports a lost connection. It does so much earlier if the server says that the answer is lost
(`silence`).
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from psycopg import Connection

from .silence import Questions, Silence


class DeadlineConnection(Connection[Any]):
    """A psycopg connection that shuts its socket down when the clock reaches `deadline`.

    `deadline` is a time of the monotonic clock, in seconds. A statement that is still running at
    this time fails with an error that reports a lost connection.
    """

    #: a time of the monotonic clock, in seconds
    deadline = math.inf
    #: The process that the connection names is the server's own: no pooler stands between them.
    is_direct = False
    #: asks whether a silent server still works; `None` if the caller waits for any time
    questions: Questions | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        is_bounded = self.deadline != math.inf
        return super().wait(self._bounded(gen) if is_bounded else gen, *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Adds a check of the deadline to a psycopg generator that waits for the server.

        The check runs each time psycopg resumes the generator, which is at least every 0.1 seconds.
        After the deadline, or when the answer is known to be lost, the check shuts the socket down,
        and psycopg then reports a lost connection.
        """
        silence: Silence | None = None
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                if ready:
                    silence = None
                elif silence is None and self.questions is not None:
                    silence = Silence(self.questions, self, now)
                if now > self.deadline or (silence is not None and silence.is_lost(now)):
                    self._shut_down()
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _shut_down(self) -> None:
        """Shuts the connection's socket down in both directions.

        libpq, the C library below psycopg, then reports a lost connection.
        """
        with suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)
