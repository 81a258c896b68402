"""A psycopg connection with a deadline that this process enforces, even if the server is silent.

A database server can stop answering without closing its connections: it is suspended, swapped out,
or the network drops all packets. The server's statement timeout then has no effect, and TCP
timeouts do not exist for local sockets. For such cases each borrowed connection has a deadline.
After the deadline this process shuts the socket down, and the running statement fails with a lost
connection.
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
    """A psycopg connection that shuts its socket down when the time `deadline` has passed.

    The running statement then fails with a lost connection.
    """

    #: a time of the monotonic clock, in seconds
    deadline = math.inf

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        is_bounded = self.deadline != math.inf
        return super().wait(self._bounded(gen) if is_bounded else gen, *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Wraps a psycopg generator that waits for the server, and checks the deadline at each
        step.

        After the deadline it shuts the socket down. A step takes at most 0.1 seconds, because
        psycopg resumes the generator that often.
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
