"""The errors that the client library raises.

* ClientError
  + BadArgument        an argument of a call is invalid
    - BadToken         the access token cannot be sent, or the token function failed
  + RecordNotFound     the record to read or change is missing
  + RecordExists       the id of the record to create is taken
  + NotARecord         a value cannot be stored or sent
    - LimitExceeded    the changeset, or a value, is over a limit of the service
  + WrongReplica       the file belongs to another space, or is not a replica
    - FileUnusable     the file cannot be opened, read or written
  + ReplicaClosed      the replica was closed before this call
  + ServerProblem      the server answered with an error, which has a code and a status
  + IncompletePage     the server's page lacks events, or makes no progress
  + Unreachable        the server gave no answer: it may or may not have stored the request
    - ConnectionBroke  the connection broke in the middle of a request or an answer
    - NotFoldlog       another server answered, for example a Wi-Fi sign-in page
"""

from __future__ import annotations

import sqlite3
from typing import Any

from foldlog.domain.errors import FoldlogError


class ClientError(FoldlogError):
    """The base class of the errors of the client library.

    The attribute `code` is a stable name of the kind of error.
    """

    code = "client-error"


class BadArgument(ClientError, ValueError):
    """Raised when an argument of a call is invalid. The message says which values are valid."""

    code = "bad-argument"


class BadToken(BadArgument):
    """Raised when the access token has a character that a header cannot carry, for example a line
    break at its end, or when the token function of the app failed.

    The message never contains the token.
    """

    code = "bad-token"


class RecordNotFound(ClientError, LookupError):
    """Raised when the record to read or to change is missing or deleted."""

    code = "record-not-found"


class RecordExists(ClientError):
    """Raised by `Collection.create` when a record with the given id exists already."""

    code = "record-exists"


class NotARecord(ClientError, ValueError):
    """Raised when a value cannot be stored in a record, for example a `datetime`. The message names
    the field, and the expression to store instead.
    """

    code = "not-a-record"


class LimitExceeded(NotARecord):
    """Raised when a changeset, or a value in it, is over a limit of the service
    (docs/reference/limits.md). The call that raises this error changes nothing.

    The error is raised offline too, by the limits that the service has published at the last sync,
    or by the default ones.

    Attributes:
        limit: The name of the limit, for example `operations_per_changeset_max`.
        value: The value of the limit.
    """

    code = "limit-exceeded"

    def __init__(self, limit: str, value: int, message: str | None = None):
        self.limit = limit
        self.value = value
        text = f"over the limit {limit} = {value}"
        super().__init__(text if message is None else f"{text}: {message}")


class WrongReplica(ClientError):
    """Raised when a file cannot be opened as a replica of the given space.

    There are four possible reasons: the file belongs to another program, the file belongs to
    another space, the tables in the file have another schema version, or the app gave no valid
    space name for a new file.
    """

    code = "wrong-replica"


class FileUnusable(WrongReplica, sqlite3.OperationalError):
    """Raised when the file of a replica cannot be opened, read or written: the disk is full, the
    file or its folder is read-only or missing, or another program holds the file.

    A call that raises this error leaves the file as it was. The message names the cause and the
    cure. Programs that catch `sqlite3.OperationalError` catch this error too.
    """

    code = "file-unusable"


class ReplicaClosed(ClientError):
    """Raised by every call that needs the file of a replica after `Replica.close`."""

    code = "replica-closed"


class IncompletePage(ClientError):
    """Raised when a page of the server lacks events, has an unreadable event, or has `more` without
    progress.

    The replica applies no event of the page. The changesets stay in the queue. The cause is a fault
    of the service: events are missing in its log.
    """

    code = "incomplete-page"


class Unreachable(ClientError):
    """Raised when a request got no answer from a Foldlog server.

    The server may have stored the changesets of the request. The changesets stay in the queue,
    and the next sync sends them again.
    """

    code = "unreachable"


class NotFoldlog(Unreachable):
    """Raised when another server than Foldlog answered a request, for example the sign-in page of a
    Wi-Fi network, a gateway, or a server that redirects to another address.

    The changesets stay in the queue, and the next sync sends them again.

    Attributes:
        url: The URL for the argument `server` of `foldlog.open`, if the answer redirects to `https`
            on the same host; otherwise `None`.
    """

    code = "not-foldlog"

    def __init__(self, message: str, url: str | None = None):
        self.url = url
        super().__init__(message)


class ConnectionBroke(Unreachable):
    """Raised when a connection broke in the middle of a request or an answer, and smaller requests
    broke too.

    Attributes:
        timed_out: Whether the connection was silent for too long, instead of ending.
    """

    code = "connection-broke"

    def __init__(self, message: str, *, timed_out: bool = False):
        self.timed_out = timed_out
        super().__init__(message)


class ServerProblem(ClientError):
    """Raised when the server answers with an error, described by a problem document (RFC 9457).

    Attributes:
        status: The HTTP status.
        problem: The problem code, such as "unauthenticated".
        document: The whole problem document.
        retry_after_seconds: The number of seconds to wait before the next request, from the header
            `Retry-After`; `None` if the answer lacks the header.
    """

    code = "server-problem"

    def __init__(self, status: int, document: dict[str, Any], retry_after_seconds: float | None):
        self.status = status
        self.problem = str(document.get("code", "unknown"))
        self.document = document
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{self.problem}: {document.get('detail', f'status {status}')}")
