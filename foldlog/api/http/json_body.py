"""A JSON body: an object with every member known and given once, read by a schema.

Its size is bounded before; here, what it may grow to when decoded. A few bytes of JSON become a
Python object of many, so its values are bounded too, and nothing but the changesets is decoded that
is larger than it need be. What takes long is done in a thread.
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
#: of each member but `changesets`
MEMBER_BYTES_MAX = 64 * 2**10
#: whose changesets they are, where that cannot be read
NOBODY = "00000000-0000-0000-0000-000000000000"
#: of a name that is told back to who sent it
NAME_LENGTH_TOLD_MAX = 100


class JsonBody:
    """The body of an operation, of no more bytes than `limit` says.

    Raises `InvalidRequest`, naming each member that is wrong.
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
        """Raises what says which changeset cannot be read, if it is one of them.

        A device must set that one aside, or it would stand in its queue for ever. Of a large body
        it is told to send less.
        """
        for name, field in self._fields.items():
            if isinstance(field, ChangesetsField):
                check_searchable(body, self._limits)
                raw = array_in(body, msgspec.json.encode(name))
                if raw is not None:
                    try:
                        field.read(bytes(raw), name, NOBODY)
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
        """Small members decoded; the changesets, and what nobody knows, still as bytes."""
        if name not in self._fields or isinstance(self._fields[name], ChangesetsField):
            return raw
        if memoryview(raw).nbytes > MEMBER_BYTES_MAX:
            raise _wrong([([name], f"longer than {MEMBER_BYTES_MAX} bytes")])
        return msgspec.json.decode(raw)


def _check_values(body: bytearray, values_max: int) -> None:
    """Bounds what decoding can make of a body. Raises `LimitExceeded`.

    In front of each value, but the first of an array or an object, is one of these. Those in texts
    count as well: to tell them apart would be to read it all.
    """
    if len(body) > values_max:  # or it can't have as many
        count = sum(body.count(sign) for sign in b",[{")
        if count > values_max:
            raise LimitExceeded("values_per_body_max", values_max)


class _Name(str):
    """The name of a member. A type of its own, so that each is shown to us as it is read."""

    __slots__ = ()


def decode_members(body: bytes | bytearray) -> dict[str, msgspec.Raw]:
    """The members of an object, their values still as bytes. One that comes twice is refused."""
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
    """The body with a byte that is no UTF-8 in the place of each half of a surrogate pair.

    JavaScript lets such a half into a string (half an emoji, cut by a program) and writes it as
    `"\\ud83d"`. It is JSON by its grammar, but no text, and our reader stops there without a place.
    Bad UTF-8 it passes over until the string is read, and then the domain can say in which
    changeset: it must, or that one would stand in its device's queue for ever.
    """
    return _ESCAPE.sub(lambda found: b"\xff" if found[1] else found[0], body)


def _wrong(found: Iterable[tuple[Any, str]]) -> InvalidRequest:
    errors = [{"pointer": pointer(path), "detail": detail} for path, detail in found]
    return InvalidRequest("a member of the body is wrong", errors=errors)


def pointer(path: Iterable[str | int]) -> str:
    """RFC 6901; names that strangers made are not told back at any length."""
    told = (str(part)[:NAME_LENGTH_TOLD_MAX] for part in path)
    return "".join(f"/{escaped(part)}" for part in told)
