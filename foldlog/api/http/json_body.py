"""Reads a JSON request body and checks it with a schema. The body must be an object. An unknown
member, or a member that is given twice, is an error.

The module `bodies` limits the bytes of the body. This module also limits the number of JSON values,
and the size of each member except the changesets, because a short JSON text can become large Python
objects. Large bodies are decoded in a thread.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import Any

import msgspec
from marshmallow import Schema, ValidationError

from foldlog.api.shapes.fields import ChangesetsField
from foldlog.api.shapes.reading import flat
from foldlog.domain.changesets import array_in, check_searchable
from foldlog.domain.errors import InvalidRequest, LimitExceeded
from foldlog.domain.json_pointers import escaped
from foldlog.domain.json_reader import decode_value, values_max_in
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
    """Reads the JSON body of an operation and checks it with `schema`.

    `limit` is the name of the limit on the size of the body. If members are wrong, `read` raises
    one `InvalidRequest` that lists an error for each of them.
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
            if body.startswith(BOM_UTF8):
                raise InvalidRequest(
                    "the body begins with a byte order mark (BOM), which JSON must not have "
                    "(RFC 8259 section 8.1)"
                ) from exc
            self._name_unreadable(body)
            raise InvalidRequest("the body is not JSON in UTF-8, or nested too deeply") from exc

    def _name_unreadable(self, body: bytearray) -> None:
        """Finds the changeset because of which the body could not be decoded, and raises
        `InvalidRequest` with the index of this changeset.

        With the index, the device can set that changeset aside and send the others. Without it, the
        changeset would block the device's queue permanently. If the body is too large to search,
        the method raises `LimitExceeded`, so that the device sends a smaller batch. If every
        changeset can be decoded, the method returns, because the fault is elsewhere in the body.
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
            # The traceback refers to the body, and would keep it in memory until the next garbage
            # collection.
            raise _wrong(list(flat(exc.messages))) from exc.with_traceback(None)
        return loaded

    def _value(self, name: str, raw: msgspec.Raw) -> Any:
        """Decodes the value of a member and returns it. If the member is unknown or contains the
        changesets, the method returns its bytes without decoding them."""
        if name not in self._fields or isinstance(self._fields[name], ChangesetsField):
            return raw
        if memoryview(raw).nbytes > MEMBER_BYTES_MAX:
            raise _wrong([([name], f"longer than {MEMBER_BYTES_MAX} bytes")])
        return decode_value(raw)


def _check_values(body: bytearray, values_max: int) -> None:
    """Raises `LimitExceeded` if a body may have more than `values_max` JSON values.

    A body with fewer values than the limit can be refused too (`values_max_in`).
    """
    # A shorter body cannot have more.
    if len(body) > values_max and values_max_in(body) > values_max:
        raise LimitExceeded("values_per_body_max", values_max)


class _Name(str):
    """The name of a member of a JSON object. It is a separate type, because msgspec calls
    `dec_hook` only for values of custom types. The function `decode_members` uses this hook to
    check each name."""

    __slots__ = ()


def decode_members(body: bytes | bytearray) -> dict[str, msgspec.Raw]:
    """Decodes a JSON object, and returns a dict from the names of its members to their undecoded
    values.

    Raises `InvalidRequest` if a member is given twice or if there are more than `MEMBERS_MAX`
    members.
    """
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
    """Returns a copy of the body in which each escape sequence of half a surrogate pair is replaced
    by the byte FF, which is invalid in UTF-8.

    A JavaScript program that cuts a string inside an emoji sends such a half, for example
    `"\\ud83d"`. JSON allows it, but msgspec refuses the whole body and reports no position. With
    the invalid byte, the body as a whole can be decoded. The domain then refuses only the changeset
    with this byte and reports its index, and the device sets that changeset aside.
    """
    return _ESCAPE.sub(lambda found: b"\xff" if found[1] else found[0], body)


def _wrong(found: Iterable[tuple[Any, str]]) -> InvalidRequest:
    errors = [{"pointer": pointer(path), "detail": detail} for path, detail in found]
    return InvalidRequest("a member of the body is wrong", errors=errors)


def pointer(path: Iterable[str | int]) -> str:
    """Returns the JSON pointer (RFC 6901) for a path of names and indexes. Each name is cut after
    `NAME_LENGTH_MAX` characters."""
    names = (str(part)[:NAME_LENGTH_MAX] for part in path)
    return "".join(f"/{escaped(part)}" for part in names)
