"""What an operation answers, before any server has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"


@dataclass
class Reply:
    """A body that is there, or one that is made while it is sent: then by one of two iterators.

    One that takes its time on the database is read in a thread, one that waits for what happens
    is awaited: ten thousand of those fit into one process.
    """

    body: bytes | Iterator[bytes] | AsyncIterator[bytes]
    media_type: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: whether the body is the same for everybody and always, and is compressed once
    is_kept: bool = False

    @property
    def content(self) -> bytes:
        """The body of an answer that is complete."""
        assert isinstance(self.body, bytes)
        return self.body


def json_reply(value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(msgspec.json.encode(value), headers=dict(headers or {}))


def joined(documents: list[bytes]) -> msgspec.Raw:
    """Stored documents as one JSON array: bytes joined, neither parsed nor made again."""
    return msgspec.Raw(b"[%b]" % b",".join(documents))
