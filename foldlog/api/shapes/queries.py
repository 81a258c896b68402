"""Defines the schemas of the query parameters of each operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validates_schema
from marshmallow.validate import Length, OneOf

from foldlog.domain.history import NOW, Point
from foldlog.domain.limits import Limits

from .fields import (
    PAGE_BYTES,
    CommaList,
    PointField,
    QueryWhole,
    about,
    collection_name,
    cursor_mark,
    device_id,
    record_id,
)
from .reading import Parameters


def _page_bytes(item: str) -> QueryWhole:
    # A larger number than the service allows is no error, because the page is smaller anyway.
    return QueryWhole(1, metadata=about(PAGE_BYTES.format(item=item)))


def _range_query(limits: Limits) -> type[Parameters]:
    class EventsQuery(Parameters):
        after = QueryWhole(
            load_default=0, metadata=about("The cursor: the last seq that you have.")
        )
        mark = cursor_mark(
            metadata=about("The mark that came with the cursor. The service checks it.")
        )
        limit = QueryWhole(
            1,
            limits.page_events_max,
            load_default=limits.page_events_default,
            metadata=about("The maximum number of events."),
        )
        bytes = _page_bytes("event")
        collections = CommaList(
            collection_name(),
            validate=Length(1, limits.collections_per_filter_max),
            metadata=about(
                "Only changesets that touch one of these collections, separated by "
                "commas. Events of other kinds always come."
            ),
        )
        device = device_id(
            metadata=about("The pulling device. Its own changesets come without `ops`.")
        )
        own = fields.String(
            validate=OneOf(["full"]),
            metadata=about("`full`: the device's own changesets come with `ops`."),
        )

    return EventsQuery


def events_query(limits: Limits) -> Parameters:
    class EventsQuery(_range_query(limits)):  # type: ignore[misc]
        wait = QueryWhole(
            0,
            limits.wait_seconds_max,
            load_default=0,
            metadata=about("The number of seconds to wait for a new event."),
        )

    return EventsQuery()


def stream_query(limits: Limits) -> Parameters:
    return _range_query(limits)()


def _cursor() -> fields.String:
    return fields.String(
        metadata=about("The `cursor` of the page before. Repeat the other parameters.")
    )


def _page_limit(limits: Limits, description: str) -> QueryWhole:
    return QueryWhole(
        1,
        limits.page_records_max,
        load_default=limits.page_records_default,
        metadata=about(description),
    )


class MasterQuery(Parameters):
    at_least = QueryWhole(
        load_default=None,
        metadata=about(
            "Wait until the master table includes this seq, for at most "
            "`at_least_wait_seconds_max`. 0: read what is there. Without it: wait for the log's "
            "head, for at most `head_wait_seconds_max`; `as_of` and `/diff` wait for the moments "
            "that they name."
        ),
    )


class RecordQuery(MasterQuery):
    as_of = PointField(
        metadata=about(
            "The state right after this seq, or after the last event received up to this time."
        )
    )


def records_query(limits: Limits) -> Parameters:
    class RecordsQuery(RecordQuery):
        collection = collection_name(metadata=about("Only records of this collection."))
        id = record_id(
            metadata=about(
                "Only this record of `collection`. It serves ids that a path cannot "
                "carry: browsers treat `.` and `..` as folders, even percent-encoded."
            )
        )
        changed_after = QueryWhole(
            metadata=about(
                "Every record that changed after this seq, in the order of seqs, "
                "including deleted records. Without it: the live records, by collection and id."
            )
        )
        cursor = _cursor()
        limit = _page_limit(
            limits, "The maximum number of records; those of one seq stay together."
        )

        @validates_schema
        def id_stands_alone(self, data: Mapping[str, Any], **_: Any) -> None:
            if "id" in data:
                if "collection" not in data:
                    raise ValidationError("required together with `id`", "collection")
                for name in data.keys() & {"changed_after", "cursor"}:
                    raise ValidationError("not allowed together with `id`", name)
            if {"as_of", "changed_after"} <= data.keys():
                raise ValidationError(
                    "not allowed together with `as_of`; /diff compares two moments", "changed_after"
                )

    return RecordsQuery()


class SnapshotQuery(MasterQuery):
    cursor = fields.String(
        metadata=about("The last `cursor` of an interrupted download, to resume it.")
    )
    bytes = _page_bytes("record")


def history_query(limits: Limits, *, names_record: bool = False) -> Parameters:
    class HistoryQuery(MasterQuery):
        order = fields.String(
            validate=OneOf(["oldest", "newest"]),
            load_default="oldest",
            metadata=about("The versions that come first."),
        )
        cursor = _cursor()
        limit = _page_limit(limits, "The maximum number of versions.")

    class HistoryOfQuery(HistoryQuery):
        collection = collection_name(required=True, metadata=about("The record's collection."))
        id = record_id(required=True, metadata=about("The record's id."))

    return HistoryOfQuery() if names_record else HistoryQuery()


def diff_query(limits: Limits) -> Parameters:
    class DiffQuery(MasterQuery):
        from_ = PointField(
            data_key="from",
            load_default=lambda: Point(seq=0),
            metadata=about(
                "The earlier moment: a seq, or a time as in `as_of`. Without it: "
                "before the first event."
            ),
        )
        to = PointField(
            load_default=lambda: NOW, metadata=about("The later moment. Without it: now.")
        )
        collection = collection_name(metadata=about("Only records of this collection."))
        cursor = _cursor()
        limit = _page_limit(limits, "The maximum number of records.")

    return DiffQuery()


class ExportQuery(Parameters):
    after = QueryWhole(load_default=0, metadata=about("Only events after this seq."))


class SizeQuery(Parameters):
    size = QueryWhole(
        1,
        metadata=about(
            "The size of the tree, preferably of a checkpoint. Without it: the whole tree."
        ),
    )


class InclusionQuery(SizeQuery):
    seq = QueryWhole(1, required=True, metadata=about("The seq of the event."))


class _ToSize(Parameters):
    to = QueryWhole(metadata=about("The size of the newer tree. Without it: the whole tree."))


def consistency_query() -> Parameters:
    # `from` is a keyword of Python, so the schema is made from a dictionary.
    older = QueryWhole(required=True, metadata=about("The size of the older tree."))
    made = _ToSize.from_dict({"from": older}, name="ConsistencyQuery")()
    assert isinstance(made, Parameters)
    return made


def conflicts_query(limits: Limits) -> Parameters:
    class ConflictsQuery(MasterQuery):
        collection = collection_name(metadata=about("Only conflicts of this collection."))
        id = record_id(metadata=about("Only conflicts of this record of `collection`."))
        field = fields.String(
            validate=Length(max=limits.field_name_length_max),
            metadata=about("Only conflicts of fields of this name."),
        )
        device = device_id(metadata=about("Only conflicts in which this device lost or won."))
        since = QueryWhole(
            load_default=0,
            metadata=about("Only conflicts that were decided after this seq."),
        )
        cursor = _cursor()
        limit = _page_limit(limits, "The maximum number of conflicts.")

        @validates_schema
        def id_needs_its_collection(self, data: Mapping[str, Any], **_: Any) -> None:
            if "id" in data and "collection" not in data:
                raise ValidationError("required together with `id`", "collection")

    return ConflictsQuery()


def local_ids_query(limits: Limits) -> Parameters:
    class LocalIdsQuery(MasterQuery):
        cursor = _cursor()
        limit = _page_limit(limits, "The maximum number of ids.")

    return LocalIdsQuery()


def devices_query(limits: Limits) -> Parameters:
    class DevicesQuery(Parameters):
        cursor = _cursor()
        limit = _page_limit(limits, "The maximum number of devices.")

    return DevicesQuery()


def tokens_query(limits: Limits) -> Parameters:
    class TokensQuery(Parameters):
        cursor = _cursor()
        limit = _page_limit(limits, "The maximum number of tokens.")

    return TokensQuery()


class CollectionQuery(Parameters):
    version = QueryWhole(1, metadata=about("This version. Without it: the last version."))
