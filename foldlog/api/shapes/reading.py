"""Checks the parameters of paths and query strings. If a parameter is unknown or invalid, the error
names the parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from marshmallow import RAISE, Schema, ValidationError, fields

from foldlog.domain.errors import InvalidRequest

from .fields import QueryWhole, about, collection_name, device_id, record_id, space_name, token_id

PARAMETERS_MAX = 50

#: The parameters of paths: their names and their checks.
PATH_PARAMETERS: dict[str, fields.Field[Any]] = {
    "space": space_name(metadata=about("One shared log and its master table.")),
    "collection": collection_name(metadata=about("A collection of records.")),
    "id": record_id(metadata=about("The record's id, percent-encoded, including its slashes.")),
    "device": device_id(metadata=about("The device's id.")),
    "token": token_id(metadata=about("The id of a token. It is no secret.")),
    "level": fields.String(metadata=about("The level of a tile, from 0 up.")),
    "tile": fields.String(
        metadata=about("The tile's number, as C2SP writes it: `x001/x234/067`, or `067.p/112`.")
    ),
    "seq": QueryWhole(1, metadata=about("The seq of an event.")),
    "code": fields.String(metadata=about("A problem's stable code.")),
}


class Parameters(Schema):
    """The base class of the schemas for query parameters. Each subclass adds the parameters of an
    operation. Unknown parameters are errors."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "there is no such parameter"}


def read_path(parts: Mapping[str, str]) -> None:
    """Checks the ids and other parameters of a URL path. `parts` is a dict from the names of the
    parameters to their texts. If one or more are invalid, the function raises one `InvalidRequest`
    that lists an error for each invalid parameter."""
    errors = []
    for name, value in parts.items():
        try:
            PATH_PARAMETERS[name].deserialize(value)
        except ValidationError as exc:
            errors += [{"parameter": name, "detail": str(detail)} for detail in exc.messages]
    if errors:
        raise InvalidRequest("a part of the path is wrong", errors=errors)


#: The maximum length of a query string whose result is cached.
CACHED_QUERY_LENGTH_MAX = 500
CACHED_QUERIES_MAX = 4_096


def read_query(schema: Parameters, query_string: bytes) -> Mapping[str, Any]:
    """Parses a query string and checks its parameters with `schema`. Returns a read-only dict from
    the names of the parameters to their values.

    If parameters are unknown, invalid or given twice, the function raises one `InvalidRequest` that
    lists an error for each of them.
    """
    if not schema.fields and not query_string:
        return {}
    if len(query_string) > CACHED_QUERY_LENGTH_MAX:
        return _read_query(schema, query_string)
    return _read_query_cached(schema, query_string)


def _read_query(schema: Parameters, query_string: bytes) -> Mapping[str, Any]:
    try:
        pairs = parse_qsl(
            query_string.decode(),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=PARAMETERS_MAX,
        )
    except UnicodeDecodeError as exc:
        raise InvalidRequest("the query is not UTF-8") from exc
    except ValueError as exc:
        raise InvalidRequest(f"more than {PARAMETERS_MAX} query parameters") from exc
    times = Counter(name for name, _ in pairs)
    errors = [
        {"parameter": name, "detail": "given more than once"} for name in times if times[name] > 1
    ]
    try:
        query: dict[str, Any] = schema.load(dict(pairs))
    except ValidationError as exc:
        errors += [
            {"parameter": str(path[0]), "detail": detail} for path, detail in flat(exc.messages)
        ]
        exc.with_traceback(None)  # it refers to the query, until the next garbage collection
    if errors:
        raise InvalidRequest("a query parameter is wrong", errors=errors)
    return MappingProxyType(query)


#: A client that polls repeats its query, and the check by the schema takes longer than the rest of
#: the request.
_read_query_cached = lru_cache(maxsize=CACHED_QUERIES_MAX)(_read_query)


def read_last_event_id(text: str) -> int | None:
    """Returns the seq in the value of the header `Last-Event-ID`. A client sends this header when
    it reconnects to a stream.

    Returns `None` if the value is empty. Raises `InvalidRequest` if the value is not a seq.
    """
    if not text:
        return None
    try:
        return QueryWhole().deserialize(text)
    except ValidationError as exc:
        error = {"header": "Last-Event-ID", "detail": str(exc.messages[0])}
        raise InvalidRequest("Last-Event-ID must be the id of a message", errors=[error]) from exc


def flat(messages: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Yields a pair for each error in `messages`, the nested dict of errors that marshmallow
    returns. The pair consists of the path to the wrong value (names and indexes) and the error
    message."""
    if isinstance(messages, Mapping):
        for name, below in messages.items():
            yield from flat(below, path if name == "_schema" else (*path, name))
    else:
        for message in messages:
            yield path, str(message)
