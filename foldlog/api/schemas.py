"""The shapes on the wire, for the OpenAPI document and for reading bodies.

Answers are encoded from the domain's structs and from stored bytes, never dumped through these;
tests/acceptance holds the two together.
"""

from __future__ import annotations

from typing import Any

from marshmallow import EXCLUDE, INCLUDE, RAISE, Schema, fields
from marshmallow.validate import Length, OneOf

from ..domain.limits import LIMITS, Limits
from .fields import (
    ChangesetsField,
    MomentField,
    Whole,
    collection_name,
    cursor_mark,
    device_id,
    record_id,
)


def about(text: str, **more: Any) -> dict[str, Any]:
    return {"description": text, **more}


def _uuid(text: str, **kwargs: Any) -> fields.String:
    return fields.String(metadata=about(text, format="uuid"), **kwargs)


def _time(text: str, **kwargs: Any) -> fields.DateTime:
    return fields.DateTime(metadata=about(text), **kwargs)


def _values(text: str, **kwargs: Any) -> fields.Dict:
    return fields.Dict(keys=fields.String(), metadata=about(text), **kwargs)


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
    body = fields.Raw(metadata=about("Of every other kind."))


class HandSchema(Answer):
    """One side of a conflict; without a `value` the field was unset or deleted."""

    value = fields.Raw()
    seq = Whole(1, required=True)
    device = device_id(required=True, allow_none=True)


class ConflictSchema(Answer):
    """A value that lost, and what it lost to."""

    seq = Whole(1, required=True, metadata=about("The event at which it was decided."))
    op = fields.String(required=True, validate=OneOf(["put", "add", "delete"]))
    collection = fields.String(required=True)
    id = fields.String(required=True)
    field = fields.String(required=True)
    rule = fields.String(
        required=True, validate=OneOf(["deleted", "concurrent", "delete", "not-addable"])
    )
    lost = fields.Nested(HandSchema, required=True)
    won = fields.Nested(HandSchema, required=True)


class _OfLog(Answer):
    log = _uuid("The id of this log; another one means that history forked.", required=True)
    head = Whole(required=True, metadata=about("The seq of the last event."))


class _Projected(_OfLog):
    projected = Whole(required=True, metadata=about("The seq that this answer is true at."))


class _Page(_Projected):
    cursor = fields.String(
        required=True, allow_none=True, metadata=about("Of the next page; null at the end.")
    )


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


class RecordsPageSchema(_Page):
    """A page of the master table."""

    records = fields.List(fields.Nested(RecordSchema), required=True)


class RecordAnswerSchema(_Projected):
    """One record of the master table."""

    record = fields.Nested(RecordSchema, required=True)


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
    """Every id that was made from one of the device's own keys."""

    ids = _local_ids(required=True)


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
