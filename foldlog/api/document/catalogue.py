"""Lists every error response ("problem") of the API, with a remedy and an example.

The pages at `/problems/<code>` and the OpenAPI document use this list.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

from foldlog.api.http.problems import (
    InternalError,
    MethodNotAllowed,
    NoSuchPath,
    NotReady,
    UnsupportedMediaType,
    document_of,
    status_of,
)
from foldlog.api.shapes.examples import CHANGESET_ID, DEVICE, LOG, TOKEN_ID
from foldlog.domain.errors import (
    AnotherFolder,
    BeyondTree,
    CounterGap,
    DeviceForked,
    DeviceRevoked,
    DeviceTaken,
    EnrolmentRefused,
    FoldlogError,
    Forbidden,
    HistoryUnavailable,
    IdReused,
    InvalidChangeset,
    InvalidRequest,
    InvalidSchema,
    LimitExceeded,
    LogBehind,
    LogChanged,
    LogIncomplete,
    NoCheckpoint,
    NoKeys,
    NotFound,
    NotStopped,
    OutcomeUnknown,
    ProjectionBehind,
    RateLimited,
    SchemaNotAdditive,
    SchemaViolated,
    SignInUnavailable,
    SpaceImporting,
    StorageUnavailable,
    Unauthenticated,
    UnknownCollection,
    UnknownRecord,
    UnknownSpace,
    UnknownToken,
    VersionConflict,
)
from foldlog.domain.witness import InconsistentCheckpoint, UnknownLog, UntrustedCheckpoint


class Entry(NamedTuple):
    """The entry of one problem in the list: what the client should do (`remedy`), and an example
    error. If the problem can have two HTTP statuses, `other_example` is an error with the other
    status."""

    remedy: str
    example: FoldlogError
    other_example: FoldlogError | None = None


def _wrong(kind: str, where: str, detail: str) -> dict[str, Any]:
    return {"errors": [{kind: where, "detail": detail}]}


CATALOGUE: dict[type[FoldlogError], Entry] = {
    InvalidRequest: Entry(
        "Correct the program that sends the request. `errors` names each wrong parameter of "
        "the path or the query, and each wrong member of the body (as a JSON pointer).",
        InvalidRequest(
            "a query parameter is wrong",
            **_wrong("parameter", "aftr", "there is no such parameter"),
        ),
    ),
    InvalidChangeset: Entry(
        "Set the changeset at `index` aside, where the user can see it. Renumber the "
        "changesets after it, and send again. The service stored no changeset of the push.",
        InvalidChangeset(
            "add takes numbers",
            index=0,
            pointer="/changesets/0/ops/0/fields/taps",
            **_wrong("pointer", "/changesets/0/ops/0/fields/taps", "add takes numbers"),
        ),
    ),
    LimitExceeded: Entry(
        "With 413, send fewer changesets at once: halve the batch. With 422, the changeset at"
        " `index` itself exceeds a limit: set it aside. `GET /v1/limits` has every limit.",
        LimitExceeded("operations_per_changeset_max", 1_000, index=0),
        LimitExceeded("changesets_per_push_max", 1_000),
    ),
    UnsupportedMediaType: Entry(
        "Send `application/json` in UTF-8, either uncompressed or compressed as the "
        "`Accept-Encoding` header of this response says.",
        UnsupportedMediaType("a body may be sent as it is, or by gzip or zstd"),
    ),
    IdReused: Entry(
        "Correct the program that sends the request: the changeset at `index` needs a new id."
        " Save the id with the changeset before sending, and never change a changeset after "
        "it was sent.",
        IdReused(index=0, id=CHANGESET_ID),
    ),
    CounterGap: Entry(
        "Renumber the changesets in the queue from `expected` on, and send again. If the "
        "queue lost a changeset, tell the user.",
        CounterGap(index=0, counter=9, expected=8),
    ),
    DeviceForked: Entry(
        "This installation was restored or cloned. Resolve each `local_id` with the old "
        "device id, create a new device id, restart its counter at 1, and send again.",
        DeviceForked(index=0, counter=7, expected=8),
    ),
    LogBehind: Entry(
        "The server was restored from an older backup. Find your last mark that the server "
        "shares, and load a snapshot. Send the changesets that the server lost again, with a "
        "`base` of at most that mark's seq.",
        LogBehind("after 57 is beyond the log's head 42", log=LOG, head=42),
    ),
    LogChanged: Entry(
        "The server's history differs from yours after some seq. Do the same as for `log-behind`.",
        LogChanged("the mark at 41 is another one here", log=LOG, head=42),
    ),
    Unauthenticated: Entry(
        "Send `Authorization: Bearer <token>` with a valid token. Keep the queue.",
        Unauthenticated(),
    ),
    Forbidden: Entry(
        "Ask the operator of the service. Keep the queue.",
        Forbidden("this needs the right `admin`"),
    ),
    DeviceRevoked: Entry(
        "An admin revoked this device permanently. Keep the queue, tell the user, and "
        "register another device id.",
        DeviceRevoked(f"the device {DEVICE} was revoked"),
    ),
    EnrolmentRefused: Entry(
        "Check the code that was typed. If it is right, ask an admin for a new code.",
        EnrolmentRefused(),
    ),
    DeviceTaken: Entry(
        "Take a new device id, and send the code again with it.",
        DeviceTaken(f"the space knows the device {DEVICE} already"),
    ),
    UnknownToken: Entry(
        "Check the list of tokens. Only an operator can revoke a token for every space.",
        UnknownToken(f"there is no token {TOKEN_ID!r}"),
    ),
    SignInUnavailable: Entry(
        "The service cannot read the keys of the app's sign-in, and stored no changes. Try "
        "again after `Retry-After` seconds.",
        SignInUnavailable(),
    ),
    NotFound: Entry("Check the name in the path.", NotFound("there is no problem called 'teapot'")),
    NoSuchPath: Entry(
        "Correct the program that sends the request. `/docs` lists every path.", NoSuchPath()
    ),
    MethodNotAllowed: Entry("Use a method from the `Allow` header.", MethodNotAllowed()),
    UnknownSpace: Entry(
        "The first push or sync to a space creates it.",
        UnknownSpace("family-list"),
    ),
    UnknownRecord: Entry(
        "Check the id. The record never existed: a deleted record has a tombstone.",
        UnknownRecord("there is no record tasks/8f0c"),
    ),
    UnknownCollection: Entry(
        "Define the collection, if its records need a schema. Until then they may have any fields.",
        UnknownCollection("the collection 'tasks' is not defined"),
    ),
    InvalidSchema: Entry(
        "Correct the schema at `pointer`. It must be JSON Schema, draft 2020-12, with known "
        "keywords only, and every `$ref` must point inside it.",
        InvalidSchema("requird is an unknown keyword", pointer="/properties/owner/requird"),
    ),
    SchemaNotAdditive: Entry(
        "The service would refuse changesets of older versions of the app. Widen the schema "
        "at each of `reasons`. Or use `force`, which counts the stored records that do not "
        "fit and continues.",
        SchemaNotAdditive(
            version=1,
            reasons=[
                {
                    "path": "/required",
                    "reason": "requires due, which the version before allows to be missing",
                }
            ],
        ),
    ),
    SchemaViolated: Entry(
        "Correct the schema, or the records: `first` names some of them, with the errors. Or "
        "use `force`: the records stay unchanged, and the service checks later changesets "
        "only for new violations.",
        SchemaViolated(
            "1 of 3 stored records do not fit",
            checked=3,
            violating=1,
            first=[{"id": "8f0c", "path": "/done", "reason": 'does not fit type "boolean"'}],
            is_complete=True,
        ),
    ),
    VersionConflict: Entry(
        "Another request defined the collection in the meantime. Read `version`, and decide again.",
        VersionConflict("the version is 2, not 1", version=2),
    ),
    NoCheckpoint: Entry(
        "If the service has a key, it signs a checkpoint one or two seconds after the first "
        "event. Otherwise the log is unsigned; tiles and proofs still work.",
        NoCheckpoint("no checkpoint of 'family-list' was signed yet"),
    ),
    NoKeys: Entry(
        "Checkpoints are unsigned, or another machine signs them. In that case give this "
        "machine the public key too (FOLDLOG_KEYS). Auditors get the keys from another source"
        " in any case.",
        NoKeys(),
    ),
    BeyondTree: Entry(
        "The tree follows the log after a moment. Ask again, or for a smaller size.",
        BeyondTree("the tree has 42 events", size=42),
    ),
    UnknownLog: Entry(
        "Ask the witness's operator to add the log's key.",
        UnknownLog("there is no key for 'example.com/log'"),
    ),
    UntrustedCheckpoint: Entry(
        "Sign with a key that the witness knows. After a key rotation, tell its operator.",
        UntrustedCheckpoint(),
    ),
    InconsistentCheckpoint: Entry(
        "Check that the proof is from `old` to the size of the checkpoint. If it is, the log "
        "has forked.",
        InconsistentCheckpoint("the old root does not follow from the proof"),
    ),
    StorageUnavailable: Entry(
        "Try again after `Retry-After` seconds. The service stored no changes; keep the queue.",
        StorageUnavailable(),
    ),
    AnotherFolder: Entry(
        "Ask another witness. The operator of this one must run `foldlog keys takeover --witness`, "
        "or stop the services that lack the folder of the witness.",
        AnotherFolder(),
    ),
    OutcomeUnknown: Entry(
        "Send the same request again. Changesets that were stored are answered as duplicates.",
        OutcomeUnknown(),
    ),
    LogIncomplete: Entry(
        "Keep the queue, and try again after `Retry-After` seconds. An operator must restore the "
        "missing events: `foldlog status` names them. Other spaces are not affected.",
        LogIncomplete("the log of 'home' is incomplete: missing: seq 300"),
    ),
    ProjectionBehind: Entry(
        "Try again after `Retry-After` seconds: the master table is catching up.",
        ProjectionBehind(head=42, projected=41),
    ),
    SpaceImporting: Entry(
        "An operator is importing the log of this space. Try again after `Retry-After` seconds; "
        "the space opens when the import is whole.",
        SpaceImporting("family-list"),
    ),
    HistoryUnavailable: Entry(
        "An operator must run `foldlog rebuild` for this space, once after an upgrade. All "
        "other operations work in the meantime.",
        HistoryUnavailable(),
    ),
    RateLimited: Entry(
        "Try again after `Retry-After` seconds. The service stored no changes; keep the "
        "queue. `GET /v1/limits` has every limit.",
        RateLimited("requests_per_second_per_caller", 200),
    ),
    NotStopped: Entry(
        "Check `foldlog status`. Only the event that halts the master table can be skipped.",
        NotStopped("the master table of 'family-list' is not halted at seq 42"),
    ),
    NotReady: Entry(
        "Send requests elsewhere until the service is ready. `checks` lists the errors.",
        NotReady(checks={"database": "connection refused"}),
    ),
    InternalError: Entry(
        "The service has an error. Try again later; `request_id` finds the request in the logs.",
        InternalError(request_id="4f8e1c0a9b7d4e3f8a6c5b4d3e2f1a0b"),
    ),
}

BY_CODE: dict[str, type[FoldlogError]] = {error.code: error for error in CATALOGUE}


def example_of(error: type[FoldlogError], status: HTTPStatus | None = None) -> dict[str, Any]:
    """Returns an example of the problem document for an error class, as a dict.

    Some errors can have two statuses, and therefore have two examples in the list. If the status of
    the second example is `status`, the function returns the second example. In all other cases it
    returns the first.
    """
    entry = CATALOGUE[error]
    other = entry.other_example
    if other is not None and status_of(other) == status:
        return document_of(other)
    return document_of(entry.example)
