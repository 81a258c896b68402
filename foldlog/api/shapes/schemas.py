"""The shapes on the wire, for the OpenAPI document and for reading bodies.

Answers are encoded from the domain's structs and from stored bytes, never dumped through these;
tests/acceptance holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, INCLUDE, RAISE, Schema, fields
from marshmallow.validate import Length, OneOf, Regexp

from foldlog.domain.access import NAME_LENGTH_MAX, Role
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.names import BY_LENGTH_MAX, REASON_LENGTH_MAX, UNSHOWN

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


def _time(text: str, **kwargs: Any) -> fields.DateTime:
    return fields.DateTime(metadata=about(text), **kwargs)


def _values(text: str, described: Mapping[str, Any] = {}, **kwargs: Any) -> fields.Dict:
    return fields.Dict(keys=fields.String(), metadata={**about(text), **described}, **kwargs)


def _local_ids(**kwargs: Any) -> fields.Dict:
    text = "{collection: {the device's own key: the record's id}}"
    ids = fields.Dict(keys=fields.String(), values=fields.String())
    return fields.Dict(keys=fields.String(), values=ids, metadata=about(text), **kwargs)


class Answer(Schema):
    """What we answer may have more members one day; what we read may not."""

    class Meta:
        unknown = EXCLUDE


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


class StoredOperationSchema(OperationSchema):
    """An operation as the log holds it: `id` is resolved; an erased one is its commitment."""

    class Meta:
        unknown = EXCLUDE

    id = record_id(required=True)
    erased = fields.String(metadata=about("What is left of an erased operation."))


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


class RefusalSchema(Answer):
    """Why a changeset was refused."""

    code = fields.String(required=True, validate=OneOf(["stale", "schema"]))
    detail = fields.String(required=True)


class RecordSchema(Answer):
    """A record as it is now."""

    collection = fields.String(required=True)
    id = fields.String(required=True)
    fields_ = _values("Empty in a tombstone.", data_key="fields", required=True)
    is_deleted = fields.Boolean(required=True)
    last_modified = _time("When its state moved last, by the server's clock.", required=True)
    seq = Whole(1, required=True, metadata=about("The event that moved its state last."))
    created_seq = Whole(1, required=True, metadata=about("The event that made it."))


class VerdictSchema(Answer):
    """What became of a changeset; a repeat is answered as the first time."""

    id = _uuid("The changeset.", required=True)
    verdict = fields.String(required=True, validate=OneOf(["stored", "refused"]))
    seq = Whole(1, required=True, metadata=about("The event that it is."))
    received_at = _time("By the server's clock.", required=True)
    time = Whole(required=True, metadata=about("ms since 1970; used for ties and nothing else."))
    duplicate = fields.Boolean(metadata=about("It was here before."))
    refusal = fields.Nested(RefusalSchema)
    ids = _local_ids()
    records = fields.List(
        fields.Nested(RecordSchema),
        metadata=about("What it touched, as it is after it; if asked for, and to the stale."),
    )


class EventSchema(Answer):
    """An event. Skip the kinds that you do not know; ignore members that you do not know."""

    seq = Whole(1, required=True)
    kind = fields.String(required=True, metadata=about("`changeset`, or another kind."))
    verdict = fields.String(validate=OneOf(["stored", "refused"]))
    id = _uuid("The changeset's id, or the event's own.", required=True)
    device = device_id()
    counter = Whole(1)
    base = Whole()
    made_at = _time("The device's clock, only a claim.")
    received_at = _time("By the server's clock; never less than that before.", required=True)
    time = Whole(metadata=about("ms since 1970: when it was made, by the server's clock."))
    guard = fields.String(validate=OneOf(["unchanged"]))
    refusal = fields.Nested(RefusalSchema)
    ops = fields.List(
        fields.Nested(StoredOperationSchema),
        metadata=about("Of a changeset; not of the puller's own, unless `own` is `full`."),
    )
    ids = _local_ids()
    erased = fields.List(
        Whole(), metadata=about("Instead of `ops`: which of them are erased, counted from 0.")
    )
    body = fields.Raw(metadata=about("Of every other kind."))


class LedgerHandSchema(Answer):
    """One side of a conflict; without a `value` the field was unset or deleted."""

    value = fields.Raw()
    seq = Whole(1, required=True)
    device = device_id(required=True, allow_none=True)


class HandSchema(LedgerHandSchema):
    """The same, with what its event says of itself."""

    changeset = _uuid("The changeset that brought it.")
    made_at = _time("By the device's clock, only a claim.")
    received_at = _time("By the server's clock.")


class RestoreSchema(Answer):
    """A changeset that puts a lost value back; add `id`, `counter` and `made_at`."""

    base = Whole(required=True, metadata=about("The seq that this answer is true at."))
    ops = fields.List(fields.Nested(OperationSchema), required=True)


class LossSchema(Answer):
    """A value that lost, and what it lost to."""

    seq = Whole(1, required=True, metadata=about("The event at which it was decided."))
    op = fields.String(required=True, validate=OneOf(["put", "add", "delete"]))
    collection = fields.String(required=True)
    id = fields.String(required=True)
    field = fields.String(required=True)
    rule = fields.String(
        required=True, validate=OneOf(["deleted", "concurrent", "delete", "not-addable"])
    )
    lost = fields.Nested(LedgerHandSchema, required=True)
    won = fields.Nested(LedgerHandSchema, required=True)


class ConflictSchema(LossSchema):
    """A value that lost, what it lost to, and the way back."""

    lost = fields.Nested(HandSchema, required=True)
    won = fields.Nested(HandSchema, required=True)
    restore = fields.Nested(
        RestoreSchema,
        required=True,
        allow_none=True,
        metadata=about("Null: a number that could not be added has no place to go back to."),
    )


class _OfLog(Answer):
    log = _uuid("The id of this log; another one means that history forked.", required=True)
    head = Whole(required=True, metadata=about("The seq of the last event."))


class _Projected(_OfLog):
    projected = Whole(required=True, metadata=about("The seq that this answer is true at."))


def _next_cursor() -> fields.String:
    return fields.String(
        required=True, allow_none=True, metadata=about("Of the next page; null at the end.")
    )


class _Page(_Projected):
    cursor = _next_cursor()


class ReceiptSchema(_OfLog):
    """The answer to a push: one verdict for each changeset, in order."""

    verdicts = fields.List(fields.Nested(VerdictSchema), required=True)


class RangeSchema(_OfLog):
    """A page of the log."""

    events = fields.List(fields.Nested(EventSchema), required=True)
    through = Whole(required=True, metadata=about("The last seq looked at: the next `after`."))
    mark = cursor_mark(required=True, metadata=about("The next `mark`."))
    more = fields.Boolean(required=True, metadata=about("There is more after `through`."))


class SyncAnswerSchema(RangeSchema):
    """The verdicts of what was sent, and a page of the log after the cursor."""

    verdicts = fields.List(fields.Nested(VerdictSchema), required=True)


def _as_of(**kwargs: Any) -> Whole:
    return Whole(metadata=about("With `as_of`: the seq of that moment."), **kwargs)


class RecordsPageSchema(_Page):
    """A page of the master table."""

    as_of = _as_of()
    records = fields.List(fields.Nested(RecordSchema), required=True)


class RecordAnswerSchema(_Projected):
    """One record of the master table."""

    as_of = _as_of()
    record = fields.Nested(RecordSchema, required=True)


class ChangeSchema(Answer):
    """What became of a field; without `from` it was not there, without `to` it is not there."""

    from_ = fields.Raw(data_key="from")
    to = fields.Raw()


def _changed(**kwargs: Any) -> fields.Dict:
    text = "{field: {`from`: its value before, `to`: its value after}}"
    change = fields.Nested(ChangeSchema)
    return fields.Dict(keys=fields.String(), values=change, metadata=about(text), **kwargs)


class VersionSchema(Answer):
    """What an event made of a record."""

    seq = Whole(1, required=True, metadata=about("The event."))
    changeset = _uuid("The changeset that it is.", required=True)
    device = device_id(required=True, allow_none=True)
    made_at = _time("By the device's clock, only a claim.")
    received_at = _time("By the server's clock.", required=True)
    is_deleted = fields.Boolean(required=True, metadata=about("After it."))
    changed = _changed(required=True)
    lost = fields.List(
        fields.Nested(LossSchema),
        required=True,
        metadata=about("What it brought and what lost, and what fell to it."),
    )


class HistoryPageSchema(_Page):
    """A page of a record's versions."""

    versions = fields.List(fields.Nested(VersionSchema), required=True)


class DifferenceSchema(Answer):
    """A record at both moments; null where there was none, or a deleted one."""

    collection = fields.String(required=True)
    id = fields.String(required=True)
    before = fields.Nested(RecordSchema, required=True, allow_none=True)
    after = fields.Nested(RecordSchema, required=True, allow_none=True)
    changed = _changed(required=True)


class DiffPageSchema(_Page):
    """A page of what differs, by the last event that touched each record."""

    from_ = Whole(required=True, data_key="from", metadata=about("The seq of the earlier moment."))
    to = Whole(required=True, metadata=about("The seq of the later one."))
    differences = fields.List(fields.Nested(DifferenceSchema), required=True)


class SnapshotHeaderSchema(Answer):
    """The first line of a snapshot."""

    log = _uuid("The id of this log.", required=True)
    seq = Whole(
        required=True, metadata=about("Follow the log from here; of a resumed one, the first's.")
    )
    mark = cursor_mark(required=True, metadata=about("The mark that goes with `seq`."))
    records = Whole(required=True, metadata=about("About how many records are to come."))


class SnapshotRecordSchema(RecordSchema):
    """A record, live or a tombstone, with all that the merge needs to go on from it."""

    writes = fields.List(
        fields.List(fields.Raw()),
        required=True,
        metadata=about("`[seq, device, time, other, [the fields that this write set]]`"),
    )
    deleted = fields.List(
        fields.Raw(),
        required=True,
        allow_none=True,
        metadata=about("Its last delete, kept for ever: `[seq, device, time, other]`."),
    )
    erased = Whole(
        1, metadata=about("By which event it was erased last: forget your copies of before.")
    )


class SnapshotPageEndSchema(Answer):
    """The line that closes a page of a snapshot."""

    at = Whole(
        required=True,
        metadata=about("The records of this page are true at this seq: pass over events up to it."),
    )
    mark = cursor_mark(
        required=True, metadata=about("The mark of `at`: another one there is another history.")
    )
    cursor = fields.String(
        required=True,
        allow_none=True,
        metadata=about("Goes on after this page if the download is cut; null: it is whole."),
    )


class ConflictsPageSchema(_Page):
    """A page of the conflict ledger, in the order of the decisions."""

    conflicts = fields.List(fields.Nested(ConflictSchema), required=True)


class LocalIdsSchema(Answer):
    """A page of the ids that were made from the device's own keys, by collection and key."""

    ids = _local_ids(required=True)
    cursor = _next_cursor()


class CollectionVersionSchema(Answer):
    """That a collection was defined."""

    collection = fields.String(required=True)
    version = Whole(1, required=True, metadata=about("1, 2, 3 ... of this collection."))
    seq = Whole(1, required=True, metadata=about("The event that says so."))
    defined_at = _time("By the server's clock.", required=True)
    by = fields.String(metadata=about("Who defined it, as was said."))
    forced = fields.Boolean(metadata=about("Although it may refuse what was allowed before."))


class CollectionsSchema(Answer):
    """The collections that are defined; records of others have any fields."""

    collections = fields.List(fields.Nested(CollectionVersionSchema), required=True)


class DefinitionSchema(CollectionVersionSchema):
    """What the records of a collection must be like."""

    schema = fields.Dict(required=True, metadata=about("JSON Schema, draft 2020-12, of `fields`."))
    versions = fields.List(fields.Nested(CollectionVersionSchema), required=True)


class ReasonSchema(Answer):
    """A place of the new schema."""

    path = fields.String(required=True, metadata=about("A JSON pointer (RFC 6901)."))
    reason = fields.String(required=True)


class FoundSchema(ReasonSchema):
    """A stored record that does not fit, and where."""

    id = fields.String(required=True)


class CheckSchema(Answer):
    """What a look through the stored records has found."""

    checked = Whole(required=True)
    violating = Whole(required=True, metadata=about("How many of these do not fit."))
    first = fields.List(fields.Nested(FoundSchema), required=True)
    is_complete = fields.Boolean(
        required=True, metadata=about("false: there were more than there was time for.")
    )


class OutcomeSchema(Answer):
    """What became of a definition, or would become of it."""

    collection = fields.String(required=True)
    version = Whole(1, required=True)
    seq = Whole(
        1, required=True, allow_none=True, metadata=about("Its event; null after a dry run.")
    )
    reasons = fields.List(
        fields.Nested(ReasonSchema),
        required=True,
        metadata=about("Where it may refuse what the version before allowed."),
    )
    check = fields.Nested(
        CheckSchema,
        required=True,
        allow_none=True,
        metadata=about("null: what fitted the version before fits, so nobody looked."),
    )


class ErasedRecordSchema(Answer):
    """A record, and how many events hold values of it, or held: those were erased just now."""

    collection = fields.String(required=True)
    id = fields.String(required=True)
    events = Whole(required=True, metadata=about("0: it was erased before."))
    seq = Whole(1, metadata=about("The event that says so; not there with `dry_run`."))


class ErasureAnswerSchema(Answer):
    """What was erased, or with `dry_run` would be."""

    dry_run = fields.Boolean(required=True)
    records = fields.List(fields.Nested(ErasedRecordSchema), required=True)


class SkippedSchema(Answer):
    """The event that was stepped over, and the one that says so."""

    seq = Whole(1, required=True)
    by_seq = Whole(1, required=True, metadata=about("Of the `event-skipped` event."))


class _Dated(Answer):
    """What is not there is not told: a token without `expires_at` does not expire."""

    name = fields.String(metadata=about("What a person calls it."))
    revoked_at = _time("Not there as long as it is valid.")


class TokenSchema(_Dated):
    """A token, without what makes it one."""

    id = _uuid("Names it; no secret.", required=True)
    role = fields.String(required=True, validate=OneOf([role.value for role in Role]))
    device = device_id(metadata=about("The one that it may write as."))
    granted_by = fields.String(metadata=about("Who granted it."))
    granted_at = _time("When.", required=True)
    expires_at = _time("When it ends by itself.")
    revoked_by = fields.String(metadata=about("Who revoked it."))
    revoked_reason = fields.String(metadata=about("Why."))


class GrantedSchema(TokenSchema):
    """A new token. It is told here and never again."""

    token = fields.String(required=True, metadata=about("Send it as `Authorization: Bearer ...`."))
    spaces = fields.List(space_name(), required=True, metadata=about("What it is for."))


class TokensSchema(Answer):
    """A page of them, in the order in which they were granted."""

    tokens = fields.List(fields.Nested(TokenSchema), required=True)
    cursor = _next_cursor()


class DeviceSchema(_Dated):
    """A device of a space."""

    device = device_id(required=True)
    counter = Whole(required=True, metadata=about("The last that it used up."))
    registered_at = _time("Not there if it just pushed.")
    last_seen = _time("When it pushed something last.")


class DevicesSchema(Answer):
    """A page of them, by id."""

    devices = fields.List(fields.Nested(DeviceSchema), required=True)
    cursor = _next_cursor()


def _hash(text: str) -> fields.String:
    return fields.String(required=True, metadata=about(text))


def _path() -> fields.List[Any]:
    hashes = fields.List(fields.String(), required=True)
    hashes.metadata = about("Hashes in base64, as RFC 9162 orders them.")
    return hashes


class _OfTree(Answer):
    log = _uuid("The id of this log.", required=True)


class InclusionProofSchema(_OfTree):
    """That an event is in the tree: RFC 9162 section 2.1.3."""

    seq = Whole(1, required=True, metadata=about("It is leaf `seq` - 1."))
    size = Whole(1, required=True, metadata=about("Of the tree."))
    root = _hash("The root of that tree, in base64.")
    inclusion_path = _path()


class EventProofSchema(InclusionProofSchema):
    """An event, opened, and that it is in the tree."""

    leaf_hash = _hash("In base64: SHA-256 of a zero byte and the leaf.")
    ops_hash = _hash("In hex: what the leaf has in the place of `ops` or `body`.")
    salt = _hash("In hex: opens the commitments to the operations.")
    event = fields.Nested(EventSchema, required=True)


class ConsistencyProofSchema(_OfTree):
    """That a tree begins with an older one: RFC 9162 section 2.1.4."""

    from_ = Whole(required=True, data_key="from", metadata=about("The size of the older tree."))
    to = Whole(required=True, metadata=about("The size of the newer tree."))
    from_root = _hash("The root of the older tree, in base64.")
    to_root = _hash("The root of the newer tree, in base64.")
    consistency_path = _path()


class ExportHeaderSchema(_OfTree):
    """The first line of an export."""

    foldlog = fields.String(required=True, validate=OneOf(["export"]))
    version = Whole(1, required=True)
    space = fields.String(required=True)
    head = Whole(required=True, metadata=about("The seq of the last line."))


class ExportLineSchema(Answer):
    """An event, and what opens it."""

    salt = fields.String(required=True, metadata=about("In hex."))
    event = fields.Nested(EventSchema, required=True)


class KeysSchema(_OfTree):
    """The public keys that sign checkpoints."""

    keys = fields.List(
        fields.String(), required=True, metadata=about("vkeys, the present one first.")
    )


class HealthSchema(Answer):
    """The process lives."""

    status = fields.String(required=True, validate=OneOf(["ok"]))


class ReadinessSchema(Answer):
    """Requests can be taken."""

    status = fields.String(required=True, validate=OneOf(["ready"]))
    checks = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, metadata=about("{name: `ok`}")
    )


class LimitsSchema(
    Answer.from_dict({name: Whole(required=True) for name in Limits.__struct_fields__})  # type: ignore[misc]
):
    """Every limit, by its name. Sizes in bytes, lengths in characters."""


class WrongSchema(Answer):
    """One place of the request that is wrong."""

    pointer = fields.String(metadata=about("Where in the body (RFC 6901)."))
    parameter = fields.String(metadata=about("Which parameter of the path or the query."))
    header = fields.String(metadata=about("Which header."))
    detail = fields.String(required=True)


class ProblemSchema(Schema):
    """RFC 9457. `code` is stable; which further members there are follows from it."""

    class Meta:
        unknown = INCLUDE

    type = fields.String(required=True, metadata=about("A page about this code."))
    title = fields.String(required=True)
    status = Whole(400, 599, required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True)
    errors = fields.List(fields.Nested(WrongSchema))
    index = Whole(metadata=about("Which changeset of the push, counted from 0."))
    pointer = fields.String(metadata=about("Where in the body (RFC 6901)."))


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
        "pattern": rf"^[^{UNSHOWN}]*[^\s{UNSHOWN}][^{UNSHOWN}]*$",
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
