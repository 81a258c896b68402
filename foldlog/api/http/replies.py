"""The answer of an operation, before the server sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"


@dataclass
class Reply:
    """An answer with a whole body, or with pieces that are made while it is sent.

    An iterator reads the database, and each piece is read in a thread. An async iterator waits for
    events on the loop; ten thousand of those fit into one process.
    """

    body: bytes | Iterator[bytes] | AsyncIterator[bytes]
    media_type: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: whether the body is the same in every answer, so that it is compressed once
    is_kept: bool = False

    @property
    def content(self) -> bytes:
        """The body of an answer that is complete."""
        assert isinstance(self.body, bytes)
        return self.body


def json_reply(value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(msgspec.json.encode(value), headers=dict(headers or {}))


def joined(documents: list[bytes]) -> msgspec.Raw:
    """Joins stored documents to one JSON array, without parsing them."""
    return msgspec.Raw(b"[%b]" % b",".join(documents))
