"""A JSON body: an object whose members are all known and given once, read by a schema.

`bodies` bounds its bytes; this module bounds the memory after decoding, because a few bytes of JSON
become a Python object of many. The number of values is bounded, and so is the size of each member
except the changesets. Large bodies are decoded in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from marshmallow import Schema, ValidationError

from foldlog.api.shapes.fields import ChangesetsField
from foldlog.api.shapes.reading import flat
from foldlog.domain.changesets import array_in, check_searchable
from foldlog.domain.errors import InvalidRequest, LimitExceeded
from foldlog.domain.json_pointers import escaped
from foldlog.domain.limits import Limits

from .bodies import SMALL_BODY_BYTES, Reservation, read_body
from .requests import Request

MEMBERS_MAX = 50
#: of each member except `changesets`
MEMBER_BYTES_MAX = 64 * 2**10
#: the device of changesets while their own device is unreadable
UNKNOWN_DEVICE = "00000000-0000-0000-0000-000000000000"
#: of a name that a problem document repeats
NAME_LENGTH_MAX = 100


class JsonBody:
    """The body of an operation; `limit` names the limit on its bytes.

    `read` raises `InvalidRequest` with every wrong member.
    """

    def __init__(self, schema: Schema, limits: Limits, limit: str = "small_body_bytes_max"):
        self.schema = schema
        self._limits = limits
        self._limit = limit
        self._fields = {field.data_key or name: field for name, field in schema.fields.items()}

    async def read(self, request: Request) -> dict[str, Any]:
        with Reservation(request) as reservation:
            body = await read_body(request, self._limits, reservation, self._limit)
            if len(body) <= SMALL_BODY_BYTES:
                return self._decode(body)
            return await request.run(self._decode, body)

    def _decode(self, body: bytearray) -> dict[str, Any]:
        _check_values(body, self._limits.values_per_body_max)
        try:
            try:
                members = decode_members(body)
            except msgspec.DecodeError:
                if len(body) > self._limits.unreadable_bytes_max:
                    raise
                members = decode_members(_mark_half_pairs(body))
            return self._load(members) | {"body_bytes": len(body)}
        except msgspec.ValidationError as exc:
            raise InvalidRequest("the body must be a JSON object") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            self._name_unreadable(body)
            raise InvalidRequest("the body is not JSON in UTF-8, or nested too deeply") from exc

    def _name_unreadable(self, body: bytearray) -> None:
        """Raises an error that names the changeset that cannot be read, if there is one.

        With its index the device sets that changeset aside; otherwise it would block the device's
        queue for ever. For a large body the error asks for a smaller batch instead.
        """
        for name, field in self._fields.items():
            if isinstance(field, ChangesetsField):
                check_searchable(body, self._limits)
                raw = array_in(body, msgspec.json.encode(name))
                if raw is not None:
                    try:
                        field.read(bytes(raw), name, UNKNOWN_DEVICE)
                    except InvalidRequest as exc:
                        if "index" in exc.extra:
                            raise

    def _load(self, members: dict[str, msgspec.Raw]) -> dict[str, Any]:
        values = {name: self._value(name, raw) for name, raw in members.items()}
        try:
            loaded: dict[str, Any] = self.schema.load(values)
        except ValidationError as exc:
            raise _wrong(flat(exc.messages)) from exc
        return loaded

    def _value(self, name: str, raw: msgspec.Raw) -> Any:
        """Decodes a small member; leaves the changesets and unknown members as bytes."""
        if name not in self._fields or isinstance(self._fields[name], ChangesetsField):
            return raw
        if memoryview(raw).nbytes > MEMBER_BYTES_MAX:
            raise _wrong([([name], f"longer than {MEMBER_BYTES_MAX} bytes")])
        return msgspec.json.decode(raw)


def _check_values(body: bytearray, values_max: int) -> None:
    """Bounds the number of values in a body. Raises `LimitExceeded`.

    Every value follows a comma or an opening bracket. The same characters inside texts count as
    well, because telling them apart would require parsing.
    """
    if len(body) > values_max:  # a shorter body cannot have more
        count = sum(body.count(sign) for sign in b",[{")
        if count > values_max:
            raise LimitExceeded("values_per_body_max", values_max)


class _Name(str):
    """The name of a member. Its own type makes msgspec pass every name to the hook."""

    __slots__ = ()


def decode_members(body: bytes | bytearray) -> dict[str, msgspec.Raw]:
    """Returns the members of an object, their values as bytes. Raises `InvalidRequest` for a member
    that is given twice."""
    seen: set[str] = set()

    def look_at(_: type, name: str) -> _Name:
        if name in seen:
            raise _wrong([([name], "given more than once")])
        if len(seen) == MEMBERS_MAX:
            raise InvalidRequest(f"the body has more than {MEMBERS_MAX} members")
        seen.add(name)
        return _Name(name)

    members = msgspec.json.decode(body, type=dict[_Name, msgspec.Raw], dec_hook=look_at)
    return {str(name): raw for name, raw in members.items()}


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _mark_half_pairs(body: bytearray) -> bytes:
    """Replaces each half of a surrogate pair in the body with a byte that is invalid UTF-8.

    JavaScript allows such a half in a string (half an emoji, cut by a program) and writes it as
    `"\\ud83d"`. The grammar of JSON allows it, but it is no text, and msgspec refuses the body
    without a position. Invalid UTF-8 is found later, when the domain reads the string and can name
    the changeset, so that the device sets it aside.
    """
    return _ESCAPE.sub(lambda found: b"\xff" if found[1] else found[0], body)


def _wrong(found: Iterable[tuple[Any, str]]) -> InvalidRequest:
    errors = [{"pointer": pointer(path), "detail": detail} for path, detail in found]
    return InvalidRequest("a member of the body is wrong", errors=errors)


def pointer(path: Iterable[str | int]) -> str:
    """Returns a JSON pointer (RFC 6901), with long names shortened."""
    names = (str(part)[:NAME_LENGTH_MAX] for part in path)
    return "".join(f"/{escaped(part)}" for part in names)
