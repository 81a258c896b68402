"""Server-Sent Events, as far as the service's stream uses them.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    kind: str  #: "" if it is not named
    data: bytes


class Reader:
    """Takes a stream apart as its pieces come, wherever they were cut.

    What is not closed by an empty line is not a message: of a stream that breaks, nothing is
    half read.
    """

    def __init__(self) -> None:
        self.retry_seconds: float | None = None  #: how long to wait before connecting again
        self._line: list[bytes] = []  #: pieces of a line whose end has not come
        self._kind = ""
        self._data: list[bytes] = []

    def read(self, piece: bytes) -> list[Message]:
        """The messages that this piece completes."""
        first, *others = piece.split(b"\n")
        self._line.append(first)
        messages = []
        for rest in others:
            message = self._read_line(b"".join(self._line).removesuffix(b"\r"))
            self._line = [rest]
            if message is not None:
                messages.append(message)
        return messages

    def _read_line(self, line: bytes) -> Message | None:
        if not line:
            message = Message(self._kind, b"\n".join(self._data)) if self._data else None
            self._kind, self._data = "", []
            return message
        name, _, value = line.partition(b":")  # of a comment, the name is empty
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit():
            self.retry_seconds = int(value) / 1_000
        return None
