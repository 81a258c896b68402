"""Everything that Foldlog can refuse to do. `code` is the stable name that clients match on.

* FoldlogError
  + InvalidRequest            the request cannot be read; nothing was stored
    - InvalidChangeset        ... because of one changeset, named by its index
    - LimitExceeded           ... because it is over a published limit
    - InvalidSchema           ... because the schema in it is none that we take
  + PushConflict              the push contradicts the log; nothing of it was stored
    - IdReused                the id names a changeset with other content
    - CounterGap              something was lost between the device and the log
    - DeviceForked            two installations use one device id
    - LogBehind               the caller knows more than the log holds
    - LogChanged              the caller knows another history
  + DefinitionConflict        a collection cannot be defined like that; nothing was stored
    - SchemaNotAdditive       the schema may refuse what the one before it allowed
    - SchemaViolated          records that are stored do not fit the schema
    - VersionConflict         the collection has another version than expected
  + NotFound
    - UnknownSpace
    - UnknownRecord
    - UnknownCollection
    - NoCheckpoint            none was signed yet
    - NoKeys                  the process that was asked has no key that signs
    - BeyondTree              the tree over the log has not grown so far
  + Forbidden                 the caller may not do this
    - Unauthenticated         it is not known who calls
  + Unavailable               try again later
    - StorageUnavailable      the database cannot be reached; nothing was stored
    - OutcomeUnknown          the commit's answer was lost: send the same again
    - ProjectionBehind        the master table has not come so far yet
    - HistoryUnavailable      older code made the master table, which kept no versions
    - RateLimited             the caller asks for more than a published limit of what it may
  + NotStopped                only an event that a projection stands still at can be skipped
  + OperatorError             a command or the set-up cannot go on as asked
"""

from __future__ import annotations

from typing import Any, ClassVar


class FoldlogError(Exception):
    """Something went wrong in Foldlog."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, **extra: Any):
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.extra = extra  #: members that the problem document carries besides the standard ones


class InvalidRequest(FoldlogError):
    """The request cannot be read."""

    code = "invalid-request"


class InvalidChangeset(InvalidRequest):
    """A changeset of the push cannot be read; nothing of the push was stored."""

    code = "invalid-changeset"


class LimitExceeded(InvalidRequest):
    """The request is over a published limit; nothing of it was stored."""

    code = "limit-exceeded"

    def __init__(self, limit: str, value: int, message: str | None = None, **extra: Any):
        super().__init__(
            message or f"over the limit {limit} = {value}", limit=limit, value=value, **extra
        )


class InvalidSchema(InvalidRequest):
    """This is not a JSON Schema (draft 2020-12) that a collection can have."""

    code = "invalid-schema"


class PushConflict(FoldlogError):
    """The push contradicts the log; nothing of it was stored."""

    code = "push-conflict"


class IdReused(PushConflict):
    """This id already names a changeset with other content."""

    code = "id-reused"


class CounterGap(PushConflict):
    """The device's counter skips: a changeset was lost on the way."""

    code = "counter-gap"


class DeviceForked(PushConflict):
    """A new changeset has an old counter: this device was restored or cloned."""

    code = "device-forked"


class LogBehind(PushConflict):
    """The caller knows of events that this log does not have."""

    code = "log-behind"


class LogChanged(PushConflict):
    """The caller's mark is of another history than this log's."""

    code = "log-changed"


class DefinitionConflict(FoldlogError):
    """A collection cannot be defined like that; nothing was stored."""

    code = "definition-conflict"


class SchemaNotAdditive(DefinitionConflict):
    """The schema cannot be shown to allow all that the one before it allowed."""

    code = "schema-not-additive"


class SchemaViolated(DefinitionConflict):
    """Records that are stored do not fit the schema."""

    code = "schema-violated"


class VersionConflict(DefinitionConflict):
    """The collection has another version than the one expected."""

    code = "version-conflict"


class NotFound(FoldlogError):
    """There is no such thing."""

    code = "not-found"


class UnknownSpace(NotFound):
    """There is no such space."""

    code = "unknown-space"

    def __init__(self, space: str):
        super().__init__(f"there is no space {space!r}")


class UnknownRecord(NotFound):
    """There is no such record, and never was."""

    code = "unknown-record"


class UnknownCollection(NotFound):
    """The collection is not defined: its records have any fields."""

    code = "unknown-collection"


class NoCheckpoint(NotFound):
    """No checkpoint of this space was signed yet."""

    code = "no-checkpoint"


class NoKeys(NotFound):
    """This process knows no key that signs, or has signed, checkpoints."""

    code = "no-keys"


class BeyondTree(NotFound):
    """The tree over this log has not grown so far."""

    code = "beyond-tree"


class Forbidden(FoldlogError):
    """The caller may not do this."""

    code = "forbidden"


class Unauthenticated(Forbidden):
    """This call needs a token, and the one that came is missing or wrong."""

    code = "unauthenticated"


class DeviceRevoked(Forbidden):
    """This device was revoked: it may do nothing any more, and nothing was stored."""

    code = "device-revoked"


class UnknownToken(NotFound):
    """There is no such token."""

    code = "unknown-token"


class NotStopped(FoldlogError):
    """The master table does not stand still at this event."""

    code = "not-stopped"


class Unavailable(FoldlogError):
    """The service cannot answer now; try again later."""

    code = "unavailable"
    retry_after_seconds: int = 1


class SignInUnavailable(Unavailable):
    """The keys of the app's sign-in cannot be read now, so that its tokens cannot be checked."""

    code = "sign-in-unavailable"


class StorageUnavailable(Unavailable):
    """The database cannot be reached; nothing was stored."""

    code = "storage-unavailable"


class OutcomeUnknown(Unavailable):
    """The commit's answer was lost: the push may be stored. Send the same again."""

    code = "outcome-unknown"


class ProjectionBehind(Unavailable):
    """The master table has not come so far yet."""

    code = "projection-behind"

    def __init__(self, message: str | None = None, awaited: int | None = None, **extra: Any):
        super().__init__(message, **extra)
        self.awaited = awaited  #: the seq that may be waited for


class HistoryUnavailable(Unavailable):
    """An older version made this space's master table: its history waits for `foldlog rebuild`."""

    code = "history-unavailable"
    retry_after_seconds = 60


class RateLimited(Unavailable):
    """The caller asks for too much at once; nothing was stored. Try again after `Retry-After`."""

    code = "rate-limited"

    def __init__(self, limit: str, value: int, retry_after_seconds: int = 1):
        super().__init__(f"over the limit {limit} = {value}", limit=limit, value=value)
        self.retry_after_seconds = retry_after_seconds


class OperatorError(FoldlogError):
    """The command cannot go on as asked."""

    code = "operator-error"
