"""The query parameters of each operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validates_schema
from marshmallow.validate import Length, OneOf

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
)
from .reading import Parameters


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
