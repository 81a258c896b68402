"""Encodes and decodes cursors: texts that a client sends to get the next page of a list."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from ..errors import InvalidRequest
from ..limits import INTEGER_MAX

T = TypeVar("T")
_INVALID_CURSOR = "this cursor is not one that an earlier page gave"


class Page(msgspec.Struct, Generic[T]):
    """A page of a list. The client sends `cursor` to get the next page. `cursor` is `None` on the
    last page."""

    items: list[T]
    cursor: str | None


def encode_cursor(*parts: str | int) -> str:
    """Makes a cursor from `parts`, which describe the position at which the next page starts. The
    cursor is the JSON array of the parts, encoded in base64url."""
    return urlsafe_b64encode(msgspec.json.encode(parts)).rstrip(b"=").decode()


def decode_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """Decodes a cursor to its parts. Raises `InvalidRequest` if the text is invalid, or if the
    parts have other types than `types`."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        parts: tuple[Any, ...] = msgspec.json.decode(raw, type=tuple[types])  # type: ignore[valid-type]
    except (ValueError, msgspec.MsgspecError) as exc:
        raise InvalidRequest(_INVALID_CURSOR) from exc
    # A forged cursor can hold values that a database column cannot store.
    if not all(map(_is_storable, parts)):
        raise InvalidRequest(_INVALID_CURSOR)
    return parts


def _is_storable(part: str | int | UUID) -> bool:
    if isinstance(part, str):
        return "\0" not in part
    return isinstance(part, UUID) or 0 <= part <= INTEGER_MAX
