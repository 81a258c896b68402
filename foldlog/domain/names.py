"""Names and ids: their syntax, and ids derived from a device's own keys."""

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
    """Whether the text is a UUID in lower case. Ids have one spelling, so `=` can compare them."""
    return _UUID.fullmatch(text) is not None


def is_record_id(text: str) -> bool:
    return _RECORD_ID.fullmatch(text) is not None


@lru_cache(maxsize=64)  # each request from a browser checks its origin
def is_loopback(address: str) -> bool:
    """Whether a host, optionally with a port and a path, is the local machine."""
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
    """Whether a terminal shows the text as it is."""
    return _UNPRINTABLE.search(text) is None


def check_reason(reason: str, by: str | None) -> None:
    """Checks the reason for an action and the name of its author. Raises `InvalidRequest`.

    Both stay in the log for ever, even after an erasure.
    """
    check_text("reason", reason, REASON_LENGTH_MAX)
    check_text("by", "-" if by is None else by, BY_LENGTH_MAX)


def check_text(name: str, text: str, length_max: int) -> None:
    """Checks that a text is one line of printable characters. Raises `InvalidRequest`.

    Control characters are refused because they could change the terminal that prints the text.
    """
    if not text.strip() or len(text) > length_max:
        raise InvalidRequest(f"`{name}` must be text of 1-{length_max} characters")
    if not is_printable(text):
        raise InvalidRequest(f"`{name}` must be one line of printable characters")


def time_ordered_id(now_ms: int, random: int) -> str:
    """A UUID that begins with the time: version 7 (RFC 9562 section 5.7).

    `random` provides the other 74 bits. Such ids are neighbours in an index if they are made one
    after another, so inserts stay fast in a long log. Random ids would touch, and flush, one page
    each.
    """
    a, b = random >> 62 & 0xFFF, random & (1 << 62) - 1
    return str(UUID(int=(now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | a << 64 | 0b10 << 62 | b))


def id_of_local(device: str, collection: str, local_id: str) -> str:
    """The id of the record that `device` calls `local_id`.

    It is a UUID version 5 (RFC 9562) of `collection/local_id` in the device's name space. Every
    retry and every replay gives the same id, so the mapping can always be computed again.
    """
    return str(uuid5(UUID(device), f"{collection}/{local_id}"))
