"""A connection that is waited for only so long.

A server can be gone without a word: stopped, swapped out, behind a network that drops everything.
No statement timeout helps then, because nobody is there to keep it, and on a local socket no TCP
either. So whoever borrows a connection says until when he waits, and then it is hung up from this
side: all that follows is what follows when a connection breaks.
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
    #: by the monotonic clock
    until = math.inf

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        return super().wait(gen if self.until == math.inf else self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same generator; psycopg asks it every tenth of a second even if nothing comes."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if time.monotonic() > self.until:
                    self._hang_up()
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _hang_up(self) -> None:
        """libpq finds its connection at an end, and says so."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)
