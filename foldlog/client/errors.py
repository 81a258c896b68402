"""The errors of the client library.

* ClientError
  + RecordNotFound     the record to read or change is missing
  + RecordExists       the given id is taken
  + NotARecord         a value cannot be stored or sent
  + WrongReplica       the file belongs to another space, or is not a replica
  + ServerProblem      the server refused a request (its code, status, and when to try again)
  + Unreachable        the server gave no answer: it may or may not have stored the request
"""

from __future__ import annotations

from typing import Any

from foldlog.domain.errors import FoldlogError


class ClientError(FoldlogError):
    """The base class of all errors on the device. `code` is a stable name of the error."""

    code = "client-error"


class RecordNotFound(ClientError, LookupError):
    """The record is missing or deleted."""

    code = "record-not-found"


class RecordExists(ClientError):
    """A record with this id exists already."""

    code = "record-exists"


class NotARecord(ClientError, ValueError):
    """A value is outside the limits of a record, for example an integer above 2^53."""

    code = "not-a-record"


class WrongReplica(ClientError):
    """The file cannot be opened as a replica of this space."""

    code = "wrong-replica"


class Unreachable(ClientError):
    """The server gave no answer. The queue is unchanged, and the next sync sends it again."""

    code = "unreachable"


class ServerProblem(ClientError):
    """The server answered with a problem document (RFC 9457).

    Attributes:
        status: The HTTP status.
        problem: The problem code, such as "unauthenticated".
        document: The whole problem document.
        retry_after_seconds: The wait that the server asked for, or `None`.
    """

    code = "server-problem"

    def __init__(self, status: int, document: dict[str, Any], retry_after_seconds: float | None):
        self.status = status
        self.problem = str(document.get("code", "unknown"))
        self.document = document
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{self.problem}: {document.get('detail', f'status {status}')}")
