"""A connection with a deadline on the client's side.

A server can vanish silently: stopped, swapped out, or behind a network that drops all packets. The
server enforces its statement timeout, so that timeout fails with it, and TCP timeouts do not cover
local sockets. So each borrowed connection has a deadline. After the deadline this process shuts the
socket down, and the caller sees a broken connection.
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
    """A psycopg connection that breaks when its deadline has passed."""

    #: by the monotonic clock, in seconds
    deadline = math.inf

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        is_bounded = self.deadline != math.inf
        return super().wait(self._bounded(gen) if is_bounded else gen, *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Wraps a generator of psycopg, which resumes it at least every tenth of a second."""
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
        """Closes the socket in both directions. libpq then reports a lost connection."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)
