"""Converts times between ms since 1970, which the code uses, and RFC 3339 texts in UTC, which are
sent and stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated

import msgspec

#: A moment: an RFC 3339 time. It must have an offset.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]

#: the form of a time, as errors tell it. A leap second has no place in ms since 1970.
TIME_FORM = (
    "an RFC 3339 time with an offset, like 2026-11-23T09:00:00.123Z; seconds are 00 to 59, so send "
    "a leap second as 59"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_FIRST_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND


def to_ms(at: datetime) -> int:
    """Converts a `datetime` with a time zone to ms since 1970. Fractions of a millisecond are cut
    off.

    Raises `ValueError` for a time before the year 1 or after the year 9999 in UTC, because a
    `datetime` in UTC cannot express it.
    """
    ms = (at - _EPOCH) // _MILLISECOND
    if not _FIRST_MS <= ms <= _LAST_MS:
        raise ValueError("a time outside the years 1 to 9999")
    return ms


def parse_time(text: str) -> int:
    """Converts an RFC 3339 time to ms since 1970. Raises `ValueError` for any other text."""
    try:
        return to_ms(msgspec.convert(text, Moment))
    except msgspec.ValidationError as exc:
        raise ValueError(f"not {TIME_FORM}") from exc


@lru_cache(maxsize=4_096)  # a push has few moments, and writes each of them many times
def format_time(ms: int) -> str:
    """Converts ms since 1970 to an RFC 3339 time in UTC with milliseconds, such as
    `2026-11-23T09:00:02.481Z`."""
    at = _EPOCH + timedelta(milliseconds=ms)
    # `isoformat` would end with +00:00 for a time with an offset; Z is shorter and means the same.
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
