"""Parses Server-Sent Events, limited to the parts of the format that the service uses.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """One message of the stream. `kind` is the text of the line `event:`, and `data` contains the
    bytes of the lines `data:`.
    """

    kind: str  #: the value of `event:`; empty without one
    data: bytes


class Reader:
    """Parses a stream that arrives in pieces. A piece may end in the middle of a line.

    An empty line completes a message. An incomplete message at the end of the stream is
    dropped.
    """

    def __init__(self) -> None:
        self.retry_seconds: float | None = None  #: the value of the last `retry:`
        self._line: list[bytes] = []  #: pieces of an unfinished line
        self._kind = ""
        self._data: list[bytes] = []

    def read(self, piece: bytes) -> list[Message]:
        """Parses the next piece of the stream, and returns the messages that are now
        complete.
        """
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
        name, _, value = line.partition(b":")  # a comment has an empty name
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit():
            self.retry_seconds = int(value) / 1_000
        return None
