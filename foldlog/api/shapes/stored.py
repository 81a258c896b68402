"""Describes the domain's structs for the OpenAPI document: the name of each struct, and the
descriptions and formats of its members.

The list of members and the types of members are taken from the structs themselves.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from foldlog.domain.changesets import Operation
from foldlog.domain.collections import Check, InvalidRecord, Outcome, Version
from foldlog.domain.events import Event, Refusal
from foldlog.domain.history import Change, Difference, VersionView
from foldlog.domain.json_schema import Violation
from foldlog.domain.ledger import LedgerEntry, LedgerSide, Restore
from foldlog.domain.limits import Limits
from foldlog.domain.merge import RecordView, Rule
from foldlog.domain.ports import LocalIdsPage, Receipt
from foldlog.domain.push_decider import Answer
from foldlog.domain.snapshot import SnapshotHeader, SnapshotPageEnd, SnapshotRecord

from .described import (
    CURSOR,
    DEVICE,
    HEAD,
    LOCAL_IDS,
    LOG,
    MADE_AT,
    RECEIVED_AT,
    Shape,
    described,
    mark_meta,
    seq_meta,
    time_meta,
    uuid_meta,
)
from .fields import COLLECTION_PATTERN, RECORD_ID

OperationName = Literal["put", "add", "delete"]
DECIDED = seq_meta("The event at which the conflict was decided.")
CHANGED = described("{field: {`from`: its value before, `to`: its value after}}")


class StoredSide(Struct):
    """One of the two sides of a conflict: the event, its device and the value that it set. If
    `value` is absent, the event removed the field or deleted the record."""

    seq: Annotated[int, seq_meta()]
    device: Annotated[str | None, DEVICE]
    value: msgspec.Raw | UnsetType = UNSET


class Loss(Struct):
    """A conflict in the form in which the ledger stores it: the value that lost, and the value that
    won."""

    seq: Annotated[int, DECIDED]
    op: OperationName
    collection: str
    id: str
    field: str
    rule: Rule
    lost: StoredSide
    won: StoredSide


SHAPES: dict[type, Shape] = {
    Receipt: Shape(
        "Receipt",
        "The answer to a push: one verdict for each changeset, in order.",
        {"log": LOG, "head": HEAD},
    ),
    Answer: Shape(
        "Verdict",
        "The outcome of a changeset. A repeated changeset gets the same outcome again.",
        {
            "id": uuid_meta("The changeset."),
            "seq": seq_meta("The event that stores the changeset."),
            "received_at": RECEIVED_AT,
            "time": described("ms since 1970. It only decides ties."),
            "duplicate": described("True if the changeset was stored before this request."),
            "ids": LOCAL_IDS,
            "records": described(
                "The records that the changeset touched, in their state after it. They come on "
                "request, and with the refusal `stale`."
            ),
        },
    ),
    Refusal: Shape("Refusal", "The reason why a changeset was refused."),
    RecordView: Shape(
        "Record",
        "The current state of a record.",
        {
            "fields": described("Empty in a tombstone."),
            "last_modified": time_meta("The time of its last change, by the server's clock."),
            "seq": seq_meta("The event that changed its state last."),
            "created_seq": seq_meta("The event that created it."),
        },
    ),
    Event: Shape(
        "Event",
        "An event. Skip unknown kinds, and ignore unknown members.",
        {
            "seq": seq_meta(),
            "kind": described("`changeset`, or another kind."),
            "id": uuid_meta("The changeset's id, or the event's own id."),
            "device": DEVICE,
            "counter": described(minimum=1),
            "made_at": MADE_AT,
            "received_at": time_meta("The server's clock. It never decreases from event to event."),
            "time": described(
                "The time at which the change was made: ms since 1970, by the server's clock."
            ),
            "ops": described(
                "Of a changeset. The device's own changesets come without it, unless `own` is "
                "`full`."
            ),
            "ids": LOCAL_IDS,
            "erased": described("Instead of `ops`: the indexes of erased operations, from 0."),
            "body": described("Of every kind but `changeset`."),
        },
    ),
    Operation: Shape(
        "StoredOperation",
        "An operation in the log. `id` is always present.",
        {
            "collection": described("1-64 of `A-Z a-z 0-9 - _ .`", pattern=COLLECTION_PATTERN),
            "id": Annotated[str, described("The record's id.", **RECORD_ID)],
            "local_id": described("The device's own key of the record.", **RECORD_ID),
            "fields": described("`put`: new values. `add`: numbers to add."),
            "unset": described("`put`: names of fields to remove."),
            "if_seq": described("The condition that the record's seq is this; 0: no such record."),
            "expect": described(
                "The condition that these fields have these values; null: no such record."
            ),
            "erased": described("Of an erased operation: the commitment to it."),
        },
    ),
    LedgerEntry: Shape(
        "Conflict",
        "A lost value, the value that won, and a changeset that restores the lost value.",
        {
            "seq": DECIDED,
            "op": OperationName,
            "rule": Rule,
            "restore": described("Null for a number that could not be added."),
        },
    ),
    LedgerSide: Shape(
        "LedgerSide",
        "One side of a conflict, and its event. Without `value`, the field was unset or deleted.",
        {
            "seq": seq_meta(),
            "device": DEVICE,
            "changeset": uuid_meta("The changeset that brought the value."),
            "made_at": MADE_AT,
            "received_at": RECEIVED_AT,
        },
    ),
    Restore: Shape(
        "Restore",
        "A changeset that restores a lost value. Add `id`, `counter` and `made_at`, and push it.",
        {
            "base": described("The seq at which this response is true."),
            # A client pushes these operations, so they have the type that it pushes.
            "ops": described(items={"$ref": "#/components/schemas/Operation"}),
        },
    ),
    VersionView: Shape(
        "Version",
        "The state of a record after an event.",
        {
            "seq": seq_meta("The event."),
            "changeset": uuid_meta("The changeset that the event stores."),
            "device": DEVICE,
            "made_at": MADE_AT,
            "received_at": RECEIVED_AT,
            "is_deleted": described("True if the record is deleted after the event."),
            "changed": CHANGED,
            "lost": Annotated[list[Loss], described("The conflicts that the event decided.")],
        },
    ),
    Change: Shape(
        "Change",
        "A changed field. `from` is absent if the field is new, and `to` if the field is removed.",
    ),
    Difference: Shape(
        "Difference",
        "A record at both moments. Null: it did not exist, or was deleted.",
        {"changed": CHANGED},
    ),
    SnapshotHeader: Shape(
        "SnapshotHeader",
        "The first line of a snapshot.",
        {
            "log": uuid_meta("The id of this log."),
            "seq": described(
                "Follow the log from this seq. After a resumed download, use the first header's."
            ),
            "mark": mark_meta("The mark of `seq`."),
            "records": described("The approximate number of records that follow."),
        },
    ),
    SnapshotRecord: Shape(
        "SnapshotRecord",
        "A record or a tombstone, with its writes, which the merge needs.",
        {
            "writes": described("`[seq, device, time, other, [the fields that this write set]]`"),
            "deleted": described("The last delete: `[seq, device, time, other]`. It is permanent."),
            "erased": seq_meta(
                "The event that erased the record last. Delete every older copy of the record."
            ),
        },
    ),
    SnapshotPageEnd: Shape(
        "SnapshotPageEnd",
        "The line that ends a page of a snapshot.",
        {
            "at": described(
                "The records of this page are true at this seq: skip events up to it for them."
            ),
            "mark": mark_meta("The mark of `at`. A different mark means a different history."),
            "cursor": described(
                "Resumes an interrupted download after this page. Null: the snapshot is complete."
            ),
        },
    ),
    LocalIdsPage: Shape(
        "LocalIds",
        "A page of the ids that were made from the device's own keys, by collection and key.",
        {"ids": LOCAL_IDS, "cursor": CURSOR},
    ),
    Version: Shape(
        "CollectionVersion",
        "A version of a collection's schema.",
        {
            "version": described("1, 2, 3 ... in this collection.", minimum=1),
            "seq": seq_meta("The event that defined it."),
            "defined_at": RECEIVED_AT,
            "by": described("The person or program that defined it, as the request said."),
            "forced": described("True if it may refuse changesets that were allowed before."),
        },
    ),
    Outcome: Shape(
        "Outcome",
        "The result of a definition, or with `dry_run` the result that it would have.",
        {
            "version": described(minimum=1),
            "seq": seq_meta("The event of the definition; null after a dry run."),
            "reasons": described(
                "The places at which the schema may refuse values that the version before allowed."
            ),
            "check": described(
                "Null if the schema allows all that the version before allowed: the stored "
                "records were not checked."
            ),
        },
    ),
    Violation: Shape(
        "Reason",
        "A place of the new schema.",
        {"path": described("A JSON pointer (RFC 6901).")},
    ),
    Check: Shape(
        "Check",
        "The result of checking the stored records.",
        {
            "violating": described("The number of checked records that do not fit."),
            "is_complete": described("False if the time was too short for all records."),
        },
    ),
    InvalidRecord: Shape(
        "Found",
        "A stored record that does not fit, and the place.",
        {"path": described("A JSON pointer (RFC 6901).")},
    ),
    Limits: Shape("Limits", "Every limit, by its name. Sizes in bytes, lengths in characters."),
}
