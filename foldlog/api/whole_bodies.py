"""Bodies that are read on the event loop for who works in a thread: a slow one holds no thread."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from foldlog.api.http.bodies import LENGTH_DIGITS_MAX
from foldlog.domain.errors import InvalidRequest, StorageUnavailable

if TYPE_CHECKING:
    from foldlog.api.http.requests import Request

    from .server import Message, Receive, Scope

#: of all that were read and not yet handed on; those are an administrator's calls, which are small
UNDER_WAY_BYTES_MAX = 64 * 2**20
#: ... of one address: whoever it is, nobody has asked yet
UNDER_WAY_OF_ADDRESS_BYTES_MAX = 2 * 2**20
#: Nobody keeps a share of that for long.
SECONDS_MAX = 30.0


class WholeBodies:
    """The bodies that a worker reads at a time."""

    def __init__(self, bytes_max: int):
        self.bytes_max = bytes_max
        self.under_way = 0
        self._of_address: Counter[str] = Counter()

    @contextmanager
    def body_of(self, request: Request, scope: Scope, receive: Receive) -> Iterator[WholeBody]:
        body = WholeBody(self, request, scope, receive)
        try:
            yield body
        finally:
            body.forget()

    def add(self, address: str, size: int) -> None:
        """Raises `StorageUnavailable` if that is too much; it is counted all the same."""
        self.under_way += size
        self._of_address[address] += size
        is_own_too_much = self._of_address[address] > UNDER_WAY_OF_ADDRESS_BYTES_MAX
        if is_own_too_much or self.under_way > UNDER_WAY_BYTES_MAX:
            raise StorageUnavailable("too many bodies come in just now")

    def release(self, address: str, size: int) -> None:
        self.under_way -= size
        self._of_address[address] -= size
        if not self._of_address[address]:
            del self._of_address[address]


class WholeBody:
    def __init__(self, bodies: WholeBodies, request: Request, scope: Scope, receive: Receive):
        self._bodies = bodies
        self._request = request
        self._headers = dict(scope["headers"])
        self._receive = receive
        self._messages: deque[Message] = deque()

    async def read(self) -> None:
        """To its end, or to the first byte too many, which whoever it is handed to refuses.

        Raises `InvalidRequest`, `RateLimited`, `StorageUnavailable`.
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
                    self._bodies.add(self._request.address, _size(message))
                    self._request.rates.count_body(self._request, _size(message))
                    more = message.get("more_body", False)
        except TimeoutError as exc:
            raise InvalidRequest(f"the body did not come within {SECONDS_MAX:g} s") from exc

    async def receive(self) -> Message:
        """What was read, and then what comes."""
        if not self._messages:
            return await self._receive()
        message = self._messages.popleft()
        self._bodies.release(self._request.address, _size(message))
        return message

    def forget(self) -> None:
        self._bodies.release(self._request.address, sum(map(_size, self._messages)))
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
