"""Bodies that are read on the event loop for who works in a thread: a slow one holds no thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..domain.errors import InvalidRequest, StorageUnavailable
from .bodies import LENGTH_DIGITS_MAX

if TYPE_CHECKING:
    from .asgi import Message, Receive, Scope

#: of all that were read and not yet handed on; those are an administrator's calls, which are small
UNDER_WAY_BYTES_MAX = 64 * 2**20
#: Nobody keeps a share of that for long.
SECONDS_MAX = 60.0


class WholeBodies:
    """The bodies that a worker reads at a time."""

    def __init__(self, bytes_max: int):
        self.bytes_max = bytes_max
        self.under_way = 0

    @contextmanager
    def body_of(self, scope: Scope, receive: Receive) -> Iterator[WholeBody]:
        body = WholeBody(self, scope, receive)
        try:
            yield body
        finally:
            body.forget()


class WholeBody:
    def __init__(self, bodies: WholeBodies, scope: Scope, receive: Receive):
        self._bodies = bodies
        self._headers = dict(scope["headers"])
        self._receive = receive
        self._messages: deque[Message] = deque()

    async def read(self) -> None:
        """To its end, or to the first byte too many, which whoever it is handed to refuses.

        Raises `InvalidRequest`, `StorageUnavailable`.
        """
        if not self._is_worth_reading():
            return
        size, more = 0, True
        try:
            async with asyncio.timeout(SECONDS_MAX):
                while more and size <= self._bodies.bytes_max:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise InvalidRequest("the body could not be read to its end")
                    self._messages.append(message)
                    size += _size(message)
                    self._bodies.under_way += _size(message)
                    if self._bodies.under_way > UNDER_WAY_BYTES_MAX:
                        raise StorageUnavailable("too many bodies come in just now")
                    more = message.get("more_body", False)
        except TimeoutError as exc:
            raise InvalidRequest(f"the body did not come within {SECONDS_MAX:g} s") from exc

    async def receive(self) -> Message:
        """What was read, and then what comes."""
        if not self._messages:
            return await self._receive()
        message = self._messages.popleft()
        self._bodies.under_way -= _size(message)
        return message

    def forget(self) -> None:
        self._bodies.under_way -= sum(map(_size, self._messages))
        self._messages.clear()

    def _is_worth_reading(self) -> bool:
        """There is one, and it does not say already that it is too large."""
        length = self._headers.get(b"content-length", b"0").decode("latin-1")
        if b"transfer-encoding" in self._headers:
            return True
        is_length = length.isdecimal() and len(length) <= LENGTH_DIGITS_MAX
        return is_length and 0 < int(length) <= self._bodies.bytes_max


def _size(message: Message) -> int:
    return len(message.get("body", b""))
