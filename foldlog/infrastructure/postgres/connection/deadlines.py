"""Defines a psycopg connection with a deadline that works even if the server has stopped answering.

A database server can stop answering while its connections stay open. Examples are a suspended
server, and a network that drops all packets. The server's statement timeout then has no effect, and
connections over Unix sockets have no TCP timeouts. So this module sets a deadline in the client.
After the deadline the client shuts the socket down, and the running statement fails with an error
that reports a lost connection.
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


class DeadlineConnection(Connection[Any]):
    """A psycopg connection that shuts its socket down when the clock reaches `deadline`.

    `deadline` is a time of the monotonic clock, in seconds. A statement that is still running at
    this time fails with an error that reports a lost connection.
    """

    #: a time of the monotonic clock, in seconds
    deadline = math.inf

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        is_bounded = self.deadline != math.inf
        return super().wait(self._bounded(gen) if is_bounded else gen, *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Adds a check of the deadline to a psycopg generator that waits for the server.

        The check runs each time psycopg resumes the generator, which is at least every 0.1 seconds.
        After the deadline the check shuts the socket down, and psycopg then reports a lost
        connection.
        """
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if time.monotonic() > self.deadline:
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
