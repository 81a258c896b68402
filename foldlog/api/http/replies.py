"""Defines `Reply`, the response that an operation returns and the server sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"


@dataclass
class Reply:
    """A response: its body, media type, status and headers.

    The body is `bytes`, or an iterator of pieces. Use a normal iterator if the pieces are read from
    the database: the server calls it in a thread for each piece. Use an async iterator if the
    response waits for events: it runs on the event loop and needs no thread, so one process can
    send ten thousand such responses at the same time.
    """

    body: bytes | Iterator[bytes] | AsyncIterator[bytes]
    media_type: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: whether the body is the same in every answer, so that it is compressed once
    is_kept: bool = False

    @property
    def content(self) -> bytes:
        """Returns the body as bytes. Use it only if the body is `bytes`, not an iterator."""
        assert isinstance(self.body, bytes)
        return self.body


def json_reply(value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(msgspec.json.encode(value), headers=dict(headers or {}))


def joined(documents: list[bytes]) -> msgspec.Raw:
    """Joins stored JSON documents to one JSON array, and returns the array as a `msgspec.Raw`. The
    documents are copied byte by byte, without decoding them."""
    return msgspec.Raw(b"[%b]" % b",".join(documents))
