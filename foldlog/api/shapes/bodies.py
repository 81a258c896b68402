"""The request bodies, read strictly: an unknown member is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import Length, OneOf, Regexp

from foldlog.domain.access import NAME_LENGTH_MAX, Role
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.names import BY_LENGTH_MAX, REASON_LENGTH_MAX, UNPRINTABLE

from .fields import (
    ChangesetsField,
    Flag,
    MomentField,
    Whole,
    collection_name,
    cursor_mark,
    device_id,
    record_id,
    space_name,
)


def about(text: str, **more: Any) -> dict[str, Any]:
    return {"description": text, **more}


def _uuid(text: str, **kwargs: Any) -> fields.String:
    return fields.String(metadata=about(text, format="uuid"), **kwargs)


def _values(text: str, described: Mapping[str, Any] = {}, **kwargs: Any) -> fields.Dict:
    return fields.Dict(keys=fields.String(), metadata={**about(text), **described}, **kwargs)


class OperationSchema(Schema):
    """One edit of one record, named by either `id` or `local_id`."""

    op = fields.String(required=True, validate=OneOf(["put", "add", "delete"]))
    collection = collection_name(required=True, metadata=about("1-64 of `A-Z a-z 0-9 - _ .`"))
    id = record_id(metadata=about("The record's id: 1-128 characters, best a UUID."))
    local_id = record_id(
        metadata=about("The device's own key; the answer says which `id` follows from it.")
    )
    fields_ = _values("`put`: new values. `add`: numbers to add.", data_key="fields")
    unset = fields.List(fields.String(), metadata=about("`put`: names of fields to remove."))
    if_seq = Whole(metadata=about("Refuse unless the record's seq is this; 0: no such record."))
    expect = _values(
        "Refuse unless these fields have these values now; null: no such record.", allow_none=True
    )


class ChangesetSchema(Schema):
    """What one device changed at one go."""

    id = _uuid("The idempotency key; saved by the client before it sends.", required=True)
    counter = Whole(1, metadata=about("1, 2, 3 ... per device, without a hole."))
    base = Whole(
        required=True,
        metadata=about("The last seq up to which the device had every event that matters here."),
    )
    made_at = MomentField(required=True, metadata=about("The device's clock, only a claim."))
    guard = fields.String(
        validate=OneOf(["unchanged"]),
        metadata=about("Refuse if another device named one of the records after `base`."),
    )
    ops = fields.List(
        fields.Nested(OperationSchema),
        required=True,
        validate=Length(1, LIMITS.operations_per_changeset_max),
    )


class _Body(Schema):
    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "there is no such member"}

    device = device_id(required=True, metadata=about("Who sends: a UUID that the device made."))
    sent_at = MomentField(
        required=True, metadata=about("The clock of `made_at`, at sending; corrects it.")
    )
    return_ = fields.String(
        data_key="return",
        validate=OneOf(["records"]),
        metadata=about("`records`: each verdict with the records that it touched."),
    )


class DefineBody(Schema):
    """A collection's schema."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "there is no such member"}

    schema = fields.Dict(required=True, metadata=about("JSON Schema, draft 2020-12, of `fields`."))
    dry_run = Flag(load_default=False, metadata=about("Only tell."))
    force = Flag(
        load_default=False,
        metadata=about("Although it may refuse what was allowed, or what is stored."),
    )
    if_version = Whole(metadata=about("Refuse unless this is the version so far; 0: none."))
    by = fields.String(
        validate=[Length(1, 200), Regexp(r"[^\x00-\x1f\x7f]+\Z")], metadata=about("Who defines it.")
    )


def push_body(limits: Limits) -> Schema:
    class PushBody(_Body):
        """Changesets to be stored."""

        changesets = ChangesetsField(fields.Nested(ChangesetSchema), limits, required=True)

    return PushBody()


def sync_body(limits: Limits) -> Schema:
    class SyncBody(_Body):
        """A cursor, and changesets if there are any."""

        after = Whole(required=True, metadata=about("The cursor: the last seq you have."))
        mark = cursor_mark(metadata=about("The mark that came with the cursor."))
        limit = Whole(
            1,
            limits.page_events_max,
            load_default=limits.page_events_default,
            metadata=about("How many events at most."),
        )
        collections = fields.List(
            collection_name(),
            validate=Length(1, limits.collections_per_filter_max),
            metadata=about("Only changesets that touch one of these."),
        )
        own = fields.String(
            validate=OneOf(["full"]),
            metadata=about("`full`: the device's own changesets come whole, too."),
        )
        changesets = ChangesetsField(fields.Nested(ChangesetSchema), limits, load_default=list)

    return SyncBody()


def _kept_text(text: str, length_max: int, **kwargs: Any) -> fields.String:
    """What the domain checks (`check_text`)."""
    described = {
        "minLength": 1,
        "maxLength": length_max,
        "pattern": rf"^[^{UNPRINTABLE}]*[^\s{UNPRINTABLE}][^{UNPRINTABLE}]*$",
    }
    return fields.String(metadata={**about(text), **described}, **kwargs)


def skip_body() -> Schema:
    class SkipBody(Schema):
        """Which event, and why."""

        class Meta:
            unknown = RAISE

        error_messages = {"unknown": "there is no such member"}

        seq = Whole(1, required=True, metadata=about("Where the master table stands still."))
        reason = _kept_text(
            "Why. It stays in the log for ever: name no person.", REASON_LENGTH_MAX, required=True
        )
        by = _kept_text("Who decided it. It stays as well.", BY_LENGTH_MAX)

    return SkipBody()


class _Signed(Schema):
    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "there is no such member"}

    by = _kept_text("Who decided it. It stays in the log, with who calls.", BY_LENGTH_MAX)


_NAME = "What a person calls it. It stays in the log for ever."


def grant_body(limits: Limits) -> Schema:
    class GrantBody(_Signed):
        """What the token shall be."""

        role = fields.String(required=True, validate=OneOf([role.value for role in Role]))
        device = device_id(metadata=about("Of the role `device`: the one that it may write as."))
        name = _kept_text(_NAME, NAME_LENGTH_MAX)
        expires_at = MomentField(metadata=about("When it ends by itself; without it, never."))
        also = fields.List(
            space_name(),
            validate=Length(max=limits.token_spaces_max),
            load_default=list,
            metadata=about("More spaces that it is for. Only an admin of every space may."),
        )

    return GrantBody()


class RegisterBody(_Signed):
    """Which device."""

    device = device_id(required=True)
    name = _kept_text(_NAME, NAME_LENGTH_MAX)


class RevokeBody(_Signed):
    """Why."""

    reason = _kept_text(
        "It stays in the log for ever: name no person.", REASON_LENGTH_MAX, required=True
    )


def erase_body(limits: Limits) -> Schema:
    class NamedRecord(Schema):
        """One record."""

        class Meta:
            unknown = RAISE

        collection = collection_name(required=True)
        id = record_id(required=True)

    class EraseBody(Schema):
        """Either `records`, or `collection` and `where`, or all three."""

        class Meta:
            unknown = RAISE

        error_messages = {"unknown": "there is no such member"}

        records = fields.List(
            fields.Nested(NamedRecord),
            validate=Length(1, limits.erase_records_max),
            load_default=list,
        )
        collection = collection_name(metadata=about("Whose records `where` asks for."))
        where = _values(
            "Fields and their values: records of which the log ever said all of these at once.",
            {"minProperties": 1, "maxProperties": limits.fields_per_operation_max},
            validate=Length(1, limits.fields_per_operation_max),
            load_default=dict,
        )
        reason = _kept_text(
            "Why. It stays in the log for ever: name no person.", REASON_LENGTH_MAX, required=True
        )
        by = _kept_text("Who decided it. It stays as well.", BY_LENGTH_MAX)
        dry_run = fields.Boolean(
            truthy={True},
            falsy={False},
            load_default=False,
            metadata=about("Only tell what would be erased."),
        )

    return EraseBody()
