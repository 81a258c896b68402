"""Defines the schemas of the request bodies of pushes and syncs. A body with an unknown member is
refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import Length, OneOf

from foldlog.domain.limits import LIMITS, Limits

from .fields import (
    PAGE_BYTES,
    ChangesetsField,
    MomentField,
    Whole,
    about,
    collection_name,
    cursor_mark,
    device_id,
    record_id,
)


def values(text: str, keywords: Mapping[str, Any] = {}, **kwargs: Any) -> fields.Dict:
    """Returns a field that accepts a JSON object whose members may have any names and values."""
    return fields.Dict(keys=fields.String(), metadata=about(text, **keywords), **kwargs)


class Body(Schema):
    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "there is no such member"}


class OperationSchema(Body):
    """One change to one record. To name the record, give either `id` or `local_id`."""

    op = fields.String(required=True, validate=OneOf(["put", "add", "delete"]))
    collection = collection_name(required=True, metadata=about("1-64 of `A-Z a-z 0-9 - _ .`"))
    id = record_id(metadata=about("The record's id: 1-128 characters, preferably a UUID."))
    local_id = record_id(
        metadata=about("The device's own key. The response lists the `id` that follows from it.")
    )
    fields_ = values("`put`: new values. `add`: numbers to add.", data_key="fields")
    unset = fields.List(fields.String(), metadata=about("`put`: names of fields to remove."))
    if_seq = Whole(metadata=about("Refuse unless the record's seq is this; 0: it never was."))
    expect = values(
        "Refuse unless these fields have these values now; null: no live record.", allow_none=True
    )


class ChangesetSchema(Body):
    """A list of changes that a device made together. The service either stores all of them or
    refuses all of them."""

    id = fields.String(
        required=True,
        metadata=about(
            "The idempotency key. The client saves it before it sends the changeset.",
            format="uuid",
        ),
    )
    counter = Whole(1, metadata=about("1, 2, 3 ... per device, with no number left out."))
    base = Whole(
        required=True,
        metadata=about("The last seq up to which the device had every event that matters here."),
    )
    made_at = MomentField(required=True, metadata=about("The device's clock: a claim."))
    guard = fields.String(
        validate=OneOf(["unchanged"]),
        metadata=about("Refuse if another device touched one of the records after `base`."),
    )
    ops = fields.List(
        fields.Nested(OperationSchema),
        required=True,
        validate=Length(1, LIMITS.operations_per_changeset_max),
    )


class _FromDevice(Body):
    device = device_id(
        required=True, metadata=about("The sending device: a UUID that the device made.")
    )
    sent_at = MomentField(
        required=True,
        metadata=about("The device's clock at sending. The service corrects `made_at` by it."),
    )
    return_ = fields.String(
        data_key="return",
        validate=OneOf(["records"]),
        metadata=about("`records`: each verdict lists the records that its changeset touched."),
    )


def push_body(limits: Limits) -> Schema:
    class PushBody(_FromDevice):
        """The body of a push: the device that sends it, and the changesets to store."""

        changesets = ChangesetsField(fields.Nested(ChangesetSchema), limits, required=True)

    return PushBody()


def sync_body(limits: Limits) -> Schema:
    class SyncBody(_FromDevice):
        """The body of a sync: the device that sends it, the cursor of this device, and optionally
        changesets to store."""

        after = Whole(required=True, metadata=about("The cursor: the device's last seq."))
        mark = cursor_mark(metadata=about("The mark that came with the cursor."))
        limit = Whole(
            1,
            limits.page_events_max,
            load_default=limits.page_events_default,
            metadata=about("The maximum number of events."),
        )
        bytes = Whole(1, metadata=about(PAGE_BYTES.format(item="event")))
        collections = fields.List(
            collection_name(),
            validate=Length(1, limits.collections_per_filter_max),
            metadata=about("Only changesets that touch one of these."),
        )
        own = fields.String(
            validate=OneOf(["full"]),
            metadata=about("`full`: the device's own changesets come with `ops`."),
        )
        changesets = ChangesetsField(fields.Nested(ChangesetSchema), limits, load_default=list)

    return SyncBody()
