"""Names and ids: what may be one (DESIGN section 2), and the id made from a device's own key."""

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
_DOTS = frozenset({".", ".."})  # they mean folders in a path, and so can name nothing else


def is_space(name: str) -> bool:
    return _SPACE.fullmatch(name) is not None and name not in _DOTS


def is_collection(name: str) -> bool:
    # The length first: what is remembered must not be as long as a stranger likes.
    return len(name) <= LIMITS.name_length_max and _is_collection(name)


@lru_cache(maxsize=1_000)
def _is_collection(name: str) -> bool:
    return _COLLECTION.fullmatch(name) is not None and name not in _DOTS


def is_uuid(text: str) -> bool:
    """A UUID in lower case, as every id of ours is written: one spelling, so that `=` works."""
    return _UUID.fullmatch(text) is not None


def is_record_id(text: str) -> bool:
    return _RECORD_ID.fullmatch(text) is not None


@lru_cache(maxsize=64)  # the name that a browser asks for is looked at with each request
def is_loopback(address: str) -> bool:
    """Whether a host, with a port and a path or without, is this machine and nobody else's."""
    try:
        host = urlsplit(f"//{address}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


#: What is not shown but does something: controls, ends of lines, what turns the direction of text.
#: Joiners and spaces of all scripts are what people write. In this form a JSON Schema has it too.
UNPRINTABLE = r"\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(rf"[{UNPRINTABLE}\ud800-\udfff]")


def is_printable(text: str) -> bool:
    """Whether the text, printed, is all that a terminal makes of it."""
    return _UNPRINTABLE.search(text) is None


def check_reason(reason: str, by: str | None) -> None:
    """Checks the reason for an action and the name of the person behind it.

    Both stay in the log for ever, even after an erasure. Raises `InvalidRequest`.
    """
    check_text("reason", reason, REASON_LENGTH_MAX)
    check_text("by", "-" if by is None else by, BY_LENGTH_MAX)


def check_text(name: str, text: str, length_max: int) -> None:
    """Checks that a text is one line of printable characters. Raises `InvalidRequest`.

    Control characters are refused because they could change the terminal that prints the text.
    """
    if not text.strip() or len(text) > length_max:
        raise InvalidRequest(f"`{name}` is text of 1-{length_max} characters")
    if not is_printable(text):
        raise InvalidRequest(f"`{name}` is one line, of characters that can be printed")


def time_ordered_id(now_ms: int, random: int) -> str:
    """A UUID that begins with the time: version 7 (RFC 9562 section 5.7).

    `random` gives the other bits, 74 of them.

    Ids made one after another lie beside each other in an index, so a long log takes new ones as
    quickly as a short one; random ids touch, and flush, a page each.
    """
    a, b = random >> 62 & 0xFFF, random & (1 << 62) - 1
    return str(UUID(int=(now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | a << 64 | 0b10 << 62 | b))


def id_of_local(device: str, collection: str, local_id: str) -> str:
    """The id of the record that `device` calls `local_id`.

    The same on every retry and every replay, so that no mapping can be lost: UUID version 5
    (RFC 9562) of `collection/local_id` in the device's name space.
    """
    return str(uuid5(UUID(device), f"{collection}/{local_id}"))
