"""Every problem that the API answers with: what a client does about it, and an example.

The one list that the pages at `/problems/<code>`, the OpenAPI document and its page are made of.
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
    BeyondTree,
    CounterGap,
    DeviceForked,
    DeviceRevoked,
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
    """What to do, and the error as it occurs, once for each status that it may have."""

    remedy: str
    example: FoldlogError
    other_example: FoldlogError | None = None


def _wrong(kind: str, where: str, detail: str) -> dict[str, Any]:
    return {"errors": [{kind: where, "detail": detail}]}


CATALOGUE: dict[type[FoldlogError], Entry] = {
    InvalidRequest: Entry(
        "A fault of the program that sends. `errors` names each parameter of the path or the "
        "query, and each member of the body (as a JSON pointer), that is wrong.",
        InvalidRequest(
            "a query parameter is wrong",
            **_wrong("parameter", "aftr", "there is no such parameter"),
        ),
    ),
    InvalidChangeset: Entry(
        "Set the changeset at `index` aside, where the user can see it, renumber the ones after "
        "it, and send again. Nothing of the push was stored.",
        InvalidChangeset(
            "add takes numbers",
            index=0,
            pointer="/changesets/0/ops/0/fields/taps",
            **_wrong("pointer", "/changesets/0/ops/0/fields/taps", "add takes numbers"),
        ),
    ),
    LimitExceeded: Entry(
        "With 413, send fewer changesets at once: halve the batch. With 422, the changeset at "
        "`index` can never be stored as it is: set it aside. `GET /v1/limits` has every limit.",
        LimitExceeded("operations_per_changeset_max", 1_000, index=0),
        LimitExceeded("changesets_per_push_max", 1_000),
    ),
    UnsupportedMediaType: Entry(
        "Send `application/json` in UTF-8, as it is or compressed as the `Accept-Encoding` header "
        "of this answer says.",
        UnsupportedMediaType("a body may be sent as it is, or by gzip or zstd"),
    ),
    IdReused: Entry(
        "A fault of the program that sends: the changeset at `index` must have a new id. Save the "
        "id with the changeset before sending, and never change a changeset that was sent.",
        IdReused(index=0, id=CHANGESET_ID),
    ),
    CounterGap: Entry(
        "Renumber what is still in the queue from `expected` on, and send again. If the queue has "
        "lost a changeset, tell the user.",
        CounterGap(index=0, counter=9, expected=8),
    ),
    DeviceForked: Entry(
        "This installation was restored or cloned. Resolve each `local_id` with the old device id, "
        "take a new device id, begin its counter at 1, and send again.",
        DeviceForked(index=0, counter=7, expected=8),
    ),
    LogBehind: Entry(
        "The server was restored from an older backup. Find the last of your marks that it shares, "
        "load a snapshot, and send again what it no longer has, with `base` cut to that seq.",
        LogBehind("after 57 is beyond the log's head 42", log=LOG, head=42),
    ),
    LogChanged: Entry(
        "The server has another history than yours since some seq. Do as for `log-behind`.",
        LogChanged("the mark at 41 is another one here", log=LOG, head=42),
    ),
    Unauthenticated: Entry(
        "Send `Authorization: Bearer <token>` with a token that is valid. Keep the queue.",
        Unauthenticated(),
    ),
    Forbidden: Entry(
        "Ask whoever operates the service. Keep the queue.",
        Forbidden("this needs the right `admin`"),
    ),
    DeviceRevoked: Entry(
        "An admin has revoked this device, for ever. Keep the queue, tell the user, and have "
        "another device id registered.",
        DeviceRevoked(f"the device {DEVICE} was revoked"),
    ),
    UnknownToken: Entry(
        "Look at the list of tokens. One of every space is revoked by an operator.",
        UnknownToken(f"there is no token {TOKEN_ID!r}"),
    ),
    SignInUnavailable: Entry(
        "Nothing was stored. Try again after `Retry-After`; the service cannot read the keys of "
        "the app's sign-in.",
        SignInUnavailable(),
    ),
    NotFound: Entry("Nothing to be done.", NotFound("there is no problem called 'teapot'")),
    NoSuchPath: Entry("A fault of the program that sends; `/docs` lists every path.", NoSuchPath()),
    MethodNotAllowed: Entry("The `Allow` header lists the methods.", MethodNotAllowed()),
    UnknownSpace: Entry(
        "A space comes to be by the first push or sync to it.",
        UnknownSpace("family-list"),
    ),
    UnknownRecord: Entry(
        "A deleted record would have been answered as a tombstone: this one never was.",
        UnknownRecord("there is no record tasks/8f0c"),
    ),
    UnknownCollection: Entry(
        "Nothing to be done: its records have any fields, until somebody defines it.",
        UnknownCollection("the collection 'tasks' is not defined"),
    ),
    InvalidSchema: Entry(
        "Mend the schema at `pointer`. It is JSON Schema, draft 2020-12, with every keyword known "
        "and every `$ref` inside of it.",
        InvalidSchema("requird is an unknown keyword", pointer="/properties/owner/requird"),
    ),
    SchemaNotAdditive: Entry(
        "Devices of older versions would have changesets refused. Widen the schema at each of "
        "`reasons`; or say `force`, which looks for stored records that do not fit and goes on.",
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
        "Mend the records (`first` names some, with what is wrong) or the schema; or say `force`: "
        "they stay as they are, and changesets are judged by what they break.",
        SchemaViolated(
            "1 of 3 stored records do not fit",
            checked=3,
            violating=1,
            first=[{"id": "8f0c", "path": "/done", "reason": 'does not fit type "boolean"'}],
            is_complete=True,
        ),
    ),
    VersionConflict: Entry(
        "Somebody else has defined the collection meanwhile. Read `version`, and decide again.",
        VersionConflict("the version is 2, not 1", version=2),
    ),
    NoCheckpoint: Entry(
        "One is signed a second or two after the first event, if the service has a key; else this "
        "log is not signed. Tiles and proofs are there all the same.",
        NoCheckpoint("no checkpoint of 'family-list' was signed yet"),
    ),
    NoKeys: Entry(
        "Checkpoints are not signed, or by another machine than the one that answers: give it the "
        "public half too (FOLDLOG_KEYS). Auditors have the keys by another way anyway.",
        NoKeys(),
    ),
    BeyondTree: Entry(
        "The tree follows the log by a moment: ask again, or for a smaller size.",
        BeyondTree("the tree has come to 42", size=42),
    ),
    UnknownLog: Entry(
        "Ask the witness's operator to add the log's key.",
        UnknownLog("there is no key for 'example.com/log'"),
    ),
    UntrustedCheckpoint: Entry(
        "Sign with a key that the witness knows; if it was rotated, tell its operator.",
        UntrustedCheckpoint(),
    ),
    InconsistentCheckpoint: Entry(
        "Make the proof from `old` to the size of the checkpoint. If it is, the log has forked.",
        InconsistentCheckpoint("the old root does not follow from the proof"),
    ),
    StorageUnavailable: Entry(
        "Try again after `Retry-After` seconds. Nothing was stored; keep the queue.",
        StorageUnavailable(),
    ),
    OutcomeUnknown: Entry(
        "Send the very same again: what was stored is answered as a duplicate.", OutcomeUnknown()
    ),
    ProjectionBehind: Entry(
        "Try again after `Retry-After` seconds; the master table is catching up.",
        ProjectionBehind(head=42, projected=41),
    ),
    HistoryUnavailable: Entry(
        "An operator runs `foldlog rebuild` for this space, once after an upgrade; everything else "
        "goes on meanwhile.",
        HistoryUnavailable(),
    ),
    RateLimited: Entry(
        "Nothing was stored. Try again after `Retry-After` seconds; keep the queue. "
        "`GET /v1/limits` has every limit.",
        RateLimited("requests_per_second_per_caller", 200),
    ),
    NotStopped: Entry(
        "Look at `foldlog status`: only the event that the master table stands still at can be "
        "skipped.",
        NotStopped("the master table of 'family-list' does not stand still at seq 42"),
    ),
    NotReady: Entry(
        "Send requests elsewhere until this is over; `checks` says what is wrong.",
        NotReady(checks={"database": "connection refused"}),
    ),
    InternalError: Entry(
        "A fault of the service. Try again later; `request_id` finds it in the logs.",
        InternalError(request_id="4f8e1c0a9b7d4e3f8a6c5b4d3e2f1a0b"),
    ),
}

BY_CODE: dict[str, type[FoldlogError]] = {error.code: error for error in CATALOGUE}


def example_of(error: type[FoldlogError], status: HTTPStatus | None = None) -> dict[str, Any]:
    entry = CATALOGUE[error]
    other = entry.other_example
    if other is not None and status_of(other) == status:
        return document_of(other)
    return document_of(entry.example)
