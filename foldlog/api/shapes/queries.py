"""Query parameters: read strictly, so that a mistyped one is named and never ignored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from marshmallow import RAISE, Schema, ValidationError, fields, validates_schema
from marshmallow.validate import Length, OneOf

from foldlog.domain.errors import InvalidRequest
from foldlog.domain.history import NOW, Point
from foldlog.domain.limits import Limits

from .fields import (
    CommaList,
    PointField,
    QueryWhole,
    collection_name,
    cursor_mark,
    device_id,
    record_id,
    space_name,
    token_id,
)

PARAMETERS_MAX = 50

#: What a path's parts are called, and what they may be.
PATH_PARAMETERS: dict[str, fields.Field[Any]] = {
    "space": space_name(metadata={"description": "One shared log and its master table."}),
    "collection": collection_name(metadata={"description": "A collection of records."}),
    "id": record_id(
        metadata={"description": "The record's id, percent-encoded, slashes included."}
    ),
    "device": device_id(metadata={"description": "The device's id."}),
    "token": token_id(metadata={"description": "The id of a token, which is no secret."}),
    "level": fields.String(metadata={"description": "The level of a tile, from 0 up."}),
    "tile": fields.String(
        metadata={"description": "Which tile, as C2SP writes it: `x001/x234/067`, or `067.p/112`."}
    ),
    "seq": QueryWhole(1, metadata={"description": "The seq of an event."}),
    "code": fields.String(metadata={"description": "A problem's stable code."}),
}


class Parameters(Schema):
    """The parameters of an operation; by itself, none at all."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "there is no such parameter"}


def _range_query(limits: Limits) -> type[Parameters]:
    class EventsQuery(Parameters):
        after = QueryWhole(
            load_default=0, metadata={"description": "The cursor: the last seq you have."}
        )
        mark = cursor_mark(
            metadata={"description": "The mark that came with the cursor; checked if given."}
        )
        limit = QueryWhole(
            1,
            limits.page_events_max,
            load_default=limits.page_events_default,
            metadata={"description": "How many events at most."},
        )
        collections = CommaList(
            collection_name(),
            validate=Length(1, limits.collections_per_filter_max),
            metadata={
                "description": "Only changesets that touch one of these, separated by commas; "
                "other kinds of events always come."
            },
        )
        device = device_id(
            metadata={"description": "Who pulls. Its own changesets come without `ops`."}
        )
        own = fields.String(
            validate=OneOf(["full"]),
            metadata={"description": "`full`: the device's own changesets come whole, too."},
        )

    return EventsQuery


def events_query(limits: Limits) -> Parameters:
    class EventsQuery(_range_query(limits)):  # type: ignore[misc]
        wait = QueryWhole(
            0,
            limits.wait_seconds_max,
            load_default=0,
            metadata={
                "description": "Seconds to hold the request open, until there is something new."
            },
        )

    return EventsQuery()


def stream_query(limits: Limits) -> Parameters:
    return _range_query(limits)()


def _cursor() -> fields.String:
    return fields.String(
        metadata={"description": "The `cursor` of the page before, with its parameters."}
    )


def _page_limit(limits: Limits, description: str) -> QueryWhole:
    return QueryWhole(
        1,
        limits.page_records_max,
        load_default=limits.page_records_default,
        metadata={"description": description},
    )


class MasterQuery(Parameters):
    at_least = QueryWhole(
        load_default=0,
        metadata={
            "description": "Wait, within a bound, until the master table has come to this seq: "
            "read your own writes."
        },
    )


class RecordQuery(MasterQuery):
    as_of = PointField(
        metadata={
            "description": "As it was right after this seq, or after the last event that was "
            "received up to this time."
        }
    )


def records_query(limits: Limits) -> Parameters:
    class RecordsQuery(RecordQuery):
        collection = collection_name(metadata={"description": "Only records of this one."})
        id = record_id(
            metadata={
                "description": "Only this record of `collection`. For ids that a path cannot "
                "carry: browsers take `.` and `..` for folders, encoded or not."
            }
        )
        changed_after = QueryWhole(
            metadata={
                "description": "Every record whose state moved after this seq, by seq, deleted "
                "ones too. Without it: the live records, by collection and id."
            }
        )
        cursor = _cursor()
        limit = _page_limit(limits, "How many records at most; a seq is never split.")

        @validates_schema
        def id_stands_alone(self, data: Mapping[str, Any], **_: Any) -> None:
            if "id" in data:
                if "collection" not in data:
                    raise ValidationError("needed with id", "collection")
                for name in data.keys() & {"changed_after", "cursor"}:
                    raise ValidationError("goes not with id", name)
            if {"as_of", "changed_after"} <= data.keys():
                raise ValidationError("goes not with as_of; /diff tells both ends", "changed_after")

    return RecordsQuery()


class SnapshotQuery(MasterQuery):
    cursor = fields.String(
        metadata={"description": "The last `cursor` of a download that was cut: goes on after it."}
    )


def history_query(limits: Limits, *, names_record: bool = False) -> Parameters:
    class HistoryQuery(MasterQuery):
        order = fields.String(
            validate=OneOf(["oldest", "newest"]),
            load_default="oldest",
            metadata={"description": "Which versions come first."},
        )
        cursor = _cursor()
        limit = _page_limit(limits, "How many versions at most.")

    class HistoryOfQuery(HistoryQuery):
        collection = collection_name(required=True, metadata={"description": "Of the record."})
        id = record_id(required=True, metadata={"description": "Which record."})

    return HistoryOfQuery() if names_record else HistoryQuery()


def diff_query(limits: Limits) -> Parameters:
    class DiffQuery(MasterQuery):
        from_ = PointField(
            data_key="from",
            load_default=lambda: Point(seq=0),
            metadata={
                "description": "The earlier moment: a seq, or a time as in `as_of`. Without it: "
                "before the first event."
            },
        )
        to = PointField(
            load_default=lambda: NOW, metadata={"description": "The later one. Without it: now."}
        )
        collection = collection_name(metadata={"description": "Only records of this one."})
        cursor = _cursor()
        limit = _page_limit(limits, "How many records at most.")

    return DiffQuery()


class ExportQuery(Parameters):
    after = QueryWhole(load_default=0, metadata={"description": "Only events after this seq."})


class SizeQuery(Parameters):
    size = QueryWhole(
        1,
        metadata={"description": "Of the tree, best a checkpoint's; else all of it."},
    )


class InclusionQuery(SizeQuery):
    seq = QueryWhole(1, required=True, metadata={"description": "Which event."})


class _ToSize(Parameters):
    to = QueryWhole(metadata={"description": "The size of the newer tree; else all of it."})


def consistency_query() -> Parameters:
    # Made of a dictionary, because `from` is no name in Python.
    older = QueryWhole(required=True, metadata={"description": "The size of the older tree."})
    made = _ToSize.from_dict({"from": older}, name="ConsistencyQuery")()
    assert isinstance(made, Parameters)
    return made


def conflicts_query(limits: Limits) -> Parameters:
    class ConflictsQuery(MasterQuery):
        collection = collection_name(metadata={"description": "Only of records of this one."})
        id = record_id(metadata={"description": "Only of this record of `collection`."})
        field = fields.String(
            validate=Length(max=limits.field_name_length_max),
            metadata={"description": "Only of fields of this name."},
        )
        device = device_id(
            metadata={"description": "Only where this device lost, or won: either hand."}
        )
        since = QueryWhole(
            load_default=0, metadata={"description": "Only what was decided after this seq."}
        )
        cursor = _cursor()
        limit = _page_limit(limits, "How many conflicts at most.")

        @validates_schema
        def id_needs_its_collection(self, data: Mapping[str, Any], **_: Any) -> None:
            if "id" in data and "collection" not in data:
                raise ValidationError("needed with id", "collection")

    return ConflictsQuery()


def local_ids_query(limits: Limits) -> Parameters:
    class LocalIdsQuery(MasterQuery):
        cursor = _cursor()
        limit = _page_limit(limits, "How many ids at most.")

    return LocalIdsQuery()


def devices_query(limits: Limits) -> Parameters:
    class DevicesQuery(Parameters):
        cursor = _cursor()
        limit = _page_limit(limits, "How many devices at most.")

    return DevicesQuery()


def tokens_query(limits: Limits) -> Parameters:
    class TokensQuery(Parameters):
        cursor = _cursor()
        limit = _page_limit(limits, "How many tokens at most.")

    return TokensQuery()


class CollectionQuery(Parameters):
    version = QueryWhole(1, metadata={"description": "This version, instead of the last one."})


def read_path(parts: Mapping[str, str]) -> None:
    """Raises `InvalidRequest` if a part of the path cannot be what the path says it is."""
    errors = []
    for name, value in parts.items():
        try:
            PATH_PARAMETERS[name].deserialize(value)
        except ValidationError as exc:
            errors += [{"parameter": name, "detail": str(detail)} for detail in exc.messages]
    if errors:
        raise InvalidRequest("the path names what cannot be", errors=errors)


#: of a query string that is remembered with what it says
QUERY_LENGTH_KEPT_MAX = 500
QUERIES_KEPT_MAX = 4_096


def read_query(schema: Parameters, query_string: bytes) -> Mapping[str, Any]:
    """A request's parameters. Raises `InvalidRequest`, naming each that is wrong."""
    if not schema.fields and not query_string:
        return {}
    if len(query_string) > QUERY_LENGTH_KEPT_MAX:
        return _read_query(schema, query_string)
    return _read_query_again(schema, query_string)


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
    if errors:
        raise InvalidRequest("a query parameter is wrong", errors=errors)
    return MappingProxyType(query)


#: A poller asks the same again and again; a schema takes longer to read it than all the rest.
_read_query_again = lru_cache(maxsize=QUERIES_KEPT_MAX)(_read_query)


def read_last_event_id(text: str) -> int | None:
    """The header in which a stream's client says where it was. Raises `InvalidRequest`."""
    if not text:
        return None
    try:
        return QueryWhole().deserialize(text)
    except ValidationError as exc:
        error = {"header": "Last-Event-ID", "detail": str(exc.messages[0])}
        raise InvalidRequest("Last-Event-ID is the id of a message", errors=[error]) from exc


def flat(messages: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Marshmallow's tree of messages as (path, message) pairs."""
    if isinstance(messages, Mapping):
        for name, below in messages.items():
            yield from flat(below, path if name == "_schema" else (*path, name))
    else:
        for message in messages:
            yield path, str(message)
