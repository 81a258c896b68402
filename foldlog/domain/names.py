"""Checks the syntax of names, ids and short texts, and makes ids of records and events."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from .errors import InvalidRequest
from .limits import LIMITS

#: in characters
REASON_LENGTH_MAX = 500
BY_LENGTH_MAX = 200

_SPACE = re.compile(rf"[a-z0-9._-]{{1,{LIMITS.name_length_max}}}", re.ASCII)
_COLLECTION = re.compile(rf"[A-Za-z0-9._-]{{1,{LIMITS.name_length_max}}}", re.ASCII)
_RECORD_ID = re.compile(rf"[^\0\ud800-\udfff]{{1,{LIMITS.record_id_length_max}}}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_DOTS = frozenset({".", ".."})  # reserved, because they mean folders in a path


def is_space(name: str) -> bool:
    return _SPACE.fullmatch(name) is not None and name not in _DOTS


def is_collection(name: str) -> bool:
    # The length is checked first, because a cache entry must have a bounded size.
    return len(name) <= LIMITS.name_length_max and _is_collection(name)


@lru_cache(maxsize=1_000)
def _is_collection(name: str) -> bool:
    return _COLLECTION.fullmatch(name) is not None and name not in _DOTS


def is_uuid(text: str) -> bool:
    """Returns whether the text is a UUID in lower case. Upper case is refused, so that equal ids
    are always equal texts."""
    return _UUID.fullmatch(text) is not None


def is_record_id(text: str) -> bool:
    return _RECORD_ID.fullmatch(text) is not None


@lru_cache(maxsize=64)  # each request from a browser checks its origin
def is_loopback(address: str) -> bool:
    """Returns whether an address of the form `host[:port][/path]` refers to the local machine."""
    try:
        host = urlsplit(f"//{address}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


#: Characters that act on the display instead of being shown: controls, line ends, changes of the
#: text's direction. Joiners and spaces of all scripts are allowed, because people write them. The
#: syntax is valid in a JSON Schema too.
UNPRINTABLE = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(rf"[{UNPRINTABLE}\ud800-\udfff]")


def is_printable(text: str) -> bool:
    """Returns whether a terminal can print the text safely. Control characters, line ends and marks
    that change the direction of text are unsafe."""
    return _UNPRINTABLE.search(text) is None


def check_reason(reason: str, by: str | None) -> None:
    """Raises `InvalidRequest` if the reason for an action, or `by`, the name of its author, is
    empty, too long or unprintable.

    Both texts are checked because they stay in the log for ever, even after an erasure.
    """
    check_text("reason", reason, REASON_LENGTH_MAX)
    check_text("by", "-" if by is None else by, BY_LENGTH_MAX)


def check_text(name: str, text: str, length_max: int) -> None:
    """Raises `InvalidRequest` if a text is empty, longer than `length_max` characters, or contains
    control characters or line ends. The error message calls the text `name`.

    Control characters are refused because they could change the terminal that prints the text.
    """
    if not text.strip() or len(text) > length_max:
        raise InvalidRequest(f"`{name}` must be text of 1-{length_max} characters")
    if not is_printable(text):
        raise InvalidRequest(f"`{name}` must be one line of printable characters")


def time_ordered_id(now_ms: int, random: int) -> str:
    """Makes a UUID version 7 (RFC 9562 section 5.7), which begins with the time `now_ms`. `random`
    gives its other 74 bits.

    Ids that are made one after another are neighbours in a database index, so an insert into a long
    log stays fast. With random ids, each insert would change another page of the index.
    """
    a, b = random >> 62 & 0xFFF, random & (1 << 62) - 1
    return str(UUID(int=(now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | a << 64 | 0b10 << 62 | b))


def id_of_local(device: str, collection: str, local_id: str) -> str:
    """Returns the id of the record that `device` calls `local_id` in this collection.

    The id is a UUID version 5 (RFC 9562) of `collection/local_id`, with the device's id as name
    space. The same input always gives the same id, so that a repeated push refers to the same
    record.
    """
    return str(uuid5(UUID(device), f"{collection}/{local_id}"))
