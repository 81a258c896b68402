"""Defines marshmallow fields that accept fewer inputs than marshmallow's own fields, and have their
own error messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from marshmallow import ValidationError, fields
from marshmallow.validate import Range

from foldlog.domain.changesets import decode_changesets
from foldlog.domain.errors import InvalidChangeset, InvalidRequest, LimitExceeded
from foldlog.domain.history import Point
from foldlog.domain.limits import INTEGER_MAX, Limits
from foldlog.domain.names import is_collection, is_record_id, is_space, is_uuid
from foldlog.domain.proofs import MARK_LENGTH
from foldlog.domain.times import TIME_FORM, Moment, parse_time, to_ms

_WHOLE = re.compile(r"[0-9]{1,16}", re.ASCII)
_MARK = re.compile(rf"(?:[0-9a-f]{{{MARK_LENGTH}}})?", re.ASCII)
MARK_PATTERN = f"^{_MARK.pattern}$"


#: describes the parameter `bytes` of the calls that return pages
PAGE_BYTES = (
    "The maximum size of a page in bytes, below `page_bytes_max`, for a link that breaks. "
    "A page has at least one {item}."
)


def about(text: str, **keywords: Any) -> dict[str, Any]:
    """Returns the marshmallow metadata of a field, a dict of JSON Schema keywords. The generator of
    the OpenAPI document copies these keywords into the description of the field. `text` is the
    description of the field, and `keywords` are other keywords of JSON Schema."""
    return {"description": text, **keywords}


class Whole(fields.Integer):
    """A field for an integer of at least 0 in a JSON body. The field rejects 1.0, "1" and true."""

    default_error_messages = {"invalid": "must be a whole number"}

    def __init__(self, minimum: int = 0, maximum: int = INTEGER_MAX, **kwargs: Any):
        super().__init__(validate=Range(minimum, maximum), **kwargs)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class Flag(fields.Boolean):
    """A field for a boolean in a JSON body. The field accepts only `true` and `false`, and rejects
    1 and "yes"."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if type(value) is not bool:
            raise self.make_error("invalid", input=value)
        return value


class QueryWhole(Whole):
    """A field for an integer of at least 0 in a query string. The field accepts only ASCII digits,
    while Python's `int` would also accept `1_0`, ` 1` and `١`."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not _WHOLE.fullmatch(value):
            raise self.make_error("invalid")
        return int(value)


class Named(fields.String):
    """A text field that is valid if the function `is_name` returns true for the text. If the text
    is invalid, the error message is `rule`."""

    def __init__(self, is_name: Callable[[str], bool], rule: str, **kwargs: Any):
        self.is_name, self.rule = is_name, rule
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        if text is None or not self.is_name(text):
            raise ValidationError(self.rule)
        return text


def _named(is_name: Callable[[str], bool], rule: str, **described: Any) -> Callable[..., Named]:
    def field(metadata: Mapping[str, Any] | None = None, **kwargs: Any) -> Named:
        return Named(is_name, rule, metadata={**described, **(metadata or {})}, **kwargs)

    return field


_NO_DOTS = r"(?!\.{1,2}$)"
SPACE_PATTERN = rf"^{_NO_DOTS}[a-z0-9._-]{{1,64}}$"
COLLECTION_PATTERN = rf"^{_NO_DOTS}[A-Za-z0-9._-]{{1,64}}$"
#: keywords of JSON Schema for a record's id
RECORD_ID = {"minLength": 1, "maxLength": 128, "pattern": r"^[^\u0000]*$"}

space_name = _named(
    is_space,
    "a space is named by 1-64 of a-z 0-9 - _ .",
    pattern=SPACE_PATTERN,
)
collection_name = _named(
    is_collection,
    "a collection's name must be 1-64 of A-Z a-z 0-9 - _ .",
    pattern=COLLECTION_PATTERN,
)
record_id = _named(
    is_record_id,
    "an id must be 1-128 characters without NUL",
    **RECORD_ID,
)
device_id = _named(is_uuid, "a device's id must be a UUID in lower case", format="uuid")
token_id = _named(is_uuid, "the id of a token is a UUID in lower case", format="uuid")
cursor_mark = _named(
    lambda mark: _MARK.fullmatch(mark) is not None,
    f"a mark is {MARK_LENGTH} hex digits in lower case, or empty",
    pattern=MARK_PATTERN,
)


class CommaList(fields.List[Any]):
    """A field for a query parameter that contains several names, separated by commas. The value of
    the field is a list of the names, for example `["a", "b"]` for `a,b`."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return super()._deserialize(value.split(","), *args, **kwargs)


class MomentField(fields.DateTime):
    """A field for a time in the format of RFC 3339 with an offset from UTC. The year of the time in
    UTC must be between 1 and 9999."""

    default_error_messages = {"invalid": f"must be {TIME_FORM}"}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> datetime:
        try:
            moment = msgspec.convert(value, Moment)
            to_ms(moment)
        except ValueError as exc:
            raise self.make_error("invalid", input=value, obj_type="datetime") from exc
        return moment


class PointField(fields.String):
    """A field for a parameter that defines a moment in the log: either a seq, or an RFC 3339 time
    with an offset from UTC. The value of the field is a `Point`."""

    _FORMS = ({"pattern": "^[0-9]{1,15}$"}, {"format": "date-time"})

    def __init__(self, *, metadata: Mapping[str, Any] | None = None, **kwargs: Any):
        super().__init__(metadata={"anyOf": list(self._FORMS), **(metadata or {})}, **kwargs)

    default_error_messages = {"invalid": f"must be a seq, or {TIME_FORM}"}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Point:  # type: ignore[override]
        if _WHOLE.fullmatch(value) and int(value) <= INTEGER_MAX:
            return Point(seq=int(value))
        try:
            return Point(time=parse_time(value))
        except ValueError as exc:
            raise self.make_error("invalid", input=value) from exc


class ChangesetsField(fields.List[Any]):
    """The member of a request body that contains the changesets of a push.

    The domain decodes the changesets, because its decoder is 50 times faster than marshmallow. In
    the OpenAPI document, the field is a list of changesets. JSON pointers in the errors of the
    domain begin at the list of changesets. The field changes these pointers, so that they begin at
    the root of the body.
    """

    def __init__(self, inner: Any, limits: Limits, **kwargs: Any):
        super().__init__(inner, **kwargs)
        self.limits = limits

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any
    ) -> list[Any]:
        assert isinstance(value, msgspec.Raw)
        device = (data or {}).get("device")
        if not isinstance(device, str) or not is_uuid(device):
            return []  # the field `device` reports this error
        return self.read(value, str(attr), device)

    def read(self, raw: bytes | msgspec.Raw, attr: str, device: str) -> list[Any]:
        """Decodes the changesets that `device` sent, and returns a list of `Changeset` objects.
        `attr` is the name of the body's member that contains the changesets.

        Raises `InvalidRequest` if the changesets cannot be decoded. Raises `InvalidChangeset` if
        one of them is invalid. Raises `LimitExceeded` if they exceed a limit. JSON pointers in
        these errors begin at the root of the body.
        """
        try:
            return decode_changesets(raw, device, self.limits)
        except InvalidChangeset as exc:
            pointer = f"/{attr}{exc.extra.get('pointer', '')}"
            errors = [{"pointer": pointer, "detail": str(exc)}]
            raise InvalidChangeset(
                str(exc), **exc.extra | {"pointer": pointer, "errors": errors}
            ) from exc
        except InvalidRequest as exc:
            if isinstance(exc, LimitExceeded):
                if "pointer" in exc.extra:
                    exc.extra["pointer"] = f"/{attr}{exc.extra['pointer']}"
                raise
            errors = [{"pointer": f"/{attr}", "detail": str(exc)}]
            raise InvalidRequest(str(exc), errors=errors) from exc
