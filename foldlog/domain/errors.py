"""Defines all errors of Foldlog as a tree of exceptions. Clients recognize an error by its `code`,
which never changes.

* FoldlogError
  + InvalidRequest            the request is invalid and was refused as a whole
    - InvalidChangeset        one changeset, named by its index, is invalid
    - LimitExceeded           the request is over a published limit
    - InvalidSchema           the schema in the request is invalid
  + PushConflict              the push contradicts the log and was refused as a whole
    - IdReused                the id belongs to a changeset with other content
    - CounterGap              a changeset was lost between the device and the log
    - DeviceForked            two installations use one device id
    - LogBehind               the caller has events that the log lacks
    - LogChanged              the caller has another history than the log
    - DeviceTaken             the space knows the device that wants to enrol
  + DefinitionConflict        the definition of a collection was refused
    - SchemaNotAdditive       the schema may refuse values that the current one allows
    - SchemaViolated          stored records violate the schema
    - VersionConflict         the collection has another version than expected
  + NotFound                  something that the request names is missing
    - UnknownSpace
    - UnknownRecord
    - UnknownCollection
    - UnknownToken
    - NoCheckpoint            the first checkpoint is still to be signed
    - NoKeys                  this process lacks a signing key
    - BeyondTree              the Merkle tree is still too small for the proof
  + Forbidden                 the caller may not do this
    - Unauthenticated         the token is missing or invalid
    - DeviceRevoked           the device was revoked
    - EnrolmentRefused        the enrolment code is unknown, used or expired
  + Unavailable               the service cannot answer now: try again later
    - StorageUnavailable      the database is unreachable; the request was refused
    - LogIncomplete           events are missing in the log: an operator must restore them
    - AnotherFolder           another folder of this witness cosigns: an operator must decide
    - OutcomeUnknown          the answer to the commit was lost: send the same request again
    - SpaceImporting          the space is being imported, and hidden until it is whole
    - ProjectionBehind        the master table has yet to reach the seq of the request
    - HistoryUnavailable      the master table lacks its history: rebuild it first
    - RateLimited             the caller exceeds a published rate or quota
    - SignInUnavailable       the keys of the app's sign-in are unreadable now
  + NotStopped                only an event that halted the projection can be skipped
  + OperatorError             a command, or the set-up, had to stop
"""

from __future__ import annotations

from typing import Any, ClassVar

#: the longest text, in characters, of an error that quotes its input
MESSAGE_LENGTH_MAX = 300


class FoldlogError(Exception):
    """Foldlog failed.

    This is the base class of all errors that Foldlog reports. The first line of a subclass's
    docstring is the default message of that error.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, **extra: Any):
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.extra = extra  #: members that the problem document has besides the standard ones


class InvalidRequest(FoldlogError):
    """The request is invalid."""

    code = "invalid-request"


class InvalidChangeset(InvalidRequest):
    """A changeset of the push is invalid; the whole push was refused."""

    code = "invalid-changeset"


class LimitExceeded(InvalidRequest):
    """The request is over a published limit; it was refused as a whole."""

    code = "limit-exceeded"

    def __init__(self, limit: str, value: int, message: str | None = None, **extra: Any):
        super().__init__(
            message or f"over the limit {limit} = {value}", limit=limit, value=value, **extra
        )


class InvalidSchema(InvalidRequest):
    """This is not a JSON Schema (draft 2020-12) that a collection can have.

    Raised if a schema is invalid, or uses a keyword or form that Foldlog does not support.
    """

    code = "invalid-schema"


class PushConflict(FoldlogError):
    """The push contradicts the log; it was refused as a whole.

    This is the base class of the errors for a push whose ids, counters, base or cursor contradict
    the log.
    """

    code = "push-conflict"


class IdReused(PushConflict):
    """This id already belongs to a changeset with other content.

    Raised if a pushed changeset has the id of a stored changeset, but different operations or
    another guard.
    """

    code = "id-reused"


class CounterGap(PushConflict):
    """The device's counters have a gap: a changeset was lost on the way.

    Raised if the counter of a changeset is higher than the counter that the log expects next from
    its device.
    """

    code = "counter-gap"


class DeviceForked(PushConflict):
    """A new changeset has an old counter: this device was restored or cloned.

    Raised if the counter of a new changeset is lower than the counter that the log expects next
    from its device.
    """

    code = "device-forked"


class LogBehind(PushConflict):
    """The caller has events that this log lacks.

    Raised if a seq in the request, such as a cursor or a base, is higher than the head of the log.
    """

    code = "log-behind"


class LogChanged(PushConflict):
    """The caller's mark belongs to another history than this log's.

    Raised if the mark in the request differs from the log's own mark at the same seq.
    """

    code = "log-changed"


class DeviceTaken(PushConflict):
    """The space knows the device that wants to enrol.

    Raised if the device was registered, was revoked, or has pushed already.
    """

    code = "device-taken"


class DefinitionConflict(FoldlogError):
    """The definition of the collection was refused.

    This is the base class of the errors for a definition that contradicts the current definition or
    the stored records.
    """

    code = "definition-conflict"


class SchemaNotAdditive(DefinitionConflict):
    """The schema may refuse values that the current schema allows.

    Raised by a request to change the schema of a collection.
    """

    code = "schema-not-additive"


class SchemaViolated(DefinitionConflict):
    """Stored records violate the schema.

    Raised by a request to give a collection a schema that some of its stored records violate.
    """

    code = "schema-violated"


class VersionConflict(DefinitionConflict):
    """The collection has another version than expected.

    Raised if the request to define the collection has an `if_version` that differs from the current
    version.
    """

    code = "version-conflict"


class NotFound(FoldlogError):
    """Not found.

    This is the base class of the errors for something that the request names and that is missing,
    such as a space, a record, a token or a key.
    """

    code = "not-found"


class UnknownSpace(NotFound):
    """This space does not exist."""

    code = "unknown-space"

    def __init__(self, space: str):
        super().__init__(f"there is no space {space!r}")


class UnknownRecord(NotFound):
    """This record never existed."""

    code = "unknown-record"


class UnknownCollection(NotFound):
    """The collection is undefined: its records can have any fields.

    Raised if a request asks for the definition of a collection that was never defined, or for a
    version of the definition that does not exist.
    """

    code = "unknown-collection"


class NoCheckpoint(NotFound):
    """This space lacks a signed checkpoint so far."""

    code = "no-checkpoint"


class NoKeys(NotFound):
    """This process lacks a key for signing checkpoints.

    Raised by a request for the public keys that verify the checkpoints.
    """

    code = "no-keys"


class BeyondTree(NotFound):
    """The tree over this log is still too small.

    Raised if a proof needs a larger Merkle tree than the current one. New events are added to the
    tree after a short delay.
    """

    code = "beyond-tree"


class Forbidden(FoldlogError):
    """The caller may not do this."""

    code = "forbidden"


class Unauthenticated(Forbidden):
    """This call needs a token, and the request's token is missing or invalid."""

    code = "unauthenticated"


class DeviceRevoked(Forbidden):
    """This device was revoked: all its requests are refused."""

    code = "device-revoked"


class EnrolmentRefused(Forbidden):
    """This enrolment code is unknown, used or expired, or this token was traded already."""

    code = "enrolment-refused"


class UnknownToken(NotFound):
    """This token does not exist."""

    code = "unknown-token"


class NotStopped(FoldlogError):
    """The projection of the space to the master table is not halted at this event.

    Raised by a request to skip an event. An event can be skipped only while the projection is
    halted, because it failed to apply exactly this event.
    """

    code = "not-stopped"


class Unavailable(FoldlogError):
    """The service cannot answer now; try again later."""

    code = "unavailable"
    retry_after_seconds: int = 1


class SignInUnavailable(Unavailable):
    """The keys of the app's sign-in cannot be read now, so its tokens cannot be checked."""

    code = "sign-in-unavailable"


class StorageUnavailable(Unavailable):
    """The database is unreachable; nothing was stored."""

    code = "storage-unavailable"


class LogIncomplete(Unavailable):
    """Events are missing in the log of this space; nothing was stored.

    Raised if the seqs of the stored events have a hole, or if the head of the log is not the seq of
    its last event. The space then refuses appends, and its log is not signed. The alarm ends when
    `foldlog verify` finds the log complete, or by `foldlog fork`.
    """

    code = "log-incomplete"
    retry_after_seconds = 60


class AnotherFolder(Unavailable):
    """Another folder cosigns for this witness, so this one would not notice a fork.

    Raised by a witness whose folder lacks the last cosigned checkpoints. An operator must run
    `foldlog keys takeover --witness`, or stop this witness.
    """

    code = "another-folder"
    retry_after_seconds = 60


class OutcomeUnknown(Unavailable):
    """The answer to the commit was lost: the push may be stored. Send the same push again."""

    code = "outcome-unknown"


class SpaceImporting(Unavailable):
    """This space is being imported, and cannot be read or written until the import is whole.

    Raised by every operation on a space whose log is only partly imported so far.
    """

    code = "space-importing"
    retry_after_seconds = 10

    def __init__(self, space: str):
        super().__init__(f"the space {space!r} is being imported: it opens when it is whole")


class ProjectionBehind(Unavailable):
    """The master table is still behind this seq.

    Raised if a request needs a newer state than the master table has reached. If `awaited` is set,
    it is the seq that the master table must reach before the request can be answered.
    """

    code = "projection-behind"

    def __init__(self, message: str | None = None, awaited: int | None = None, **extra: Any):
        super().__init__(message, **extra)
        self.awaited = awaited  #: the seq to wait for


class HistoryUnavailable(Unavailable):
    """An older version of Foldlog stored the records without history: run `foldlog rebuild`.

    Raised by requests that need earlier versions of records. The master table contains only the
    current versions, because an older version of Foldlog filled it.
    """

    code = "history-unavailable"
    retry_after_seconds = 60


class RateLimited(Unavailable):
    """Too many requests; nothing was stored. Try again after `Retry-After` seconds."""

    code = "rate-limited"

    def __init__(self, limit: str, value: int, retry_after_seconds: int = 1):
        super().__init__(f"over the limit {limit} = {value}", limit=limit, value=value)
        self.retry_after_seconds = retry_after_seconds


class OperatorError(FoldlogError):
    """The command had to stop.

    Raised if a command of an operator, or the start of the service, cannot continue.
    """

    code = "operator-error"
