"""Defines `Reply`, the response that an operation returns and the server sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"


@dataclass
class Reply:
    """A response: its body, media type, status and headers. The body is complete, or comes in
    pieces while it is sent.

    Use an iterator if the pieces are read from the database: each is read in a thread. Use an async
    iterator if the response waits for events: it runs on the event loop only, so one process can
    have ten thousand of them.
    """

    body: bytes | Iterator[bytes] | AsyncIterator[bytes]
    media_type: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: whether the body is the same in every answer, so that it is compressed once
    is_kept: bool = False

    @property
    def content(self) -> bytes:
        """The body as bytes. Use it only if the body is complete."""
        assert isinstance(self.body, bytes)
        return self.body


def json_reply(value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(msgspec.json.encode(value), headers=dict(headers or {}))


def joined(documents: list[bytes]) -> msgspec.Raw:
    """Joins stored JSON documents to one JSON array. The bytes of the documents are copied as they
    are."""
    return msgspec.Raw(b"[%b]" % b",".join(documents))
