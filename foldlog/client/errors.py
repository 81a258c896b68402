"""What can go wrong on a device.

* ClientError
  + RecordNotFound     there is no such record to change
  + RecordExists       an id was given that is taken
  + NotARecord         a value that cannot be kept or sent
  + WrongReplica       the file belongs to another space, or is none of ours
  + ServerProblem      the server refused a request (its code, status, and when to try again)
  + Unreachable        there was no answer: nothing is known about what was sent
"""

from __future__ import annotations

from typing import Any

from foldlog.domain.errors import FoldlogError


class ClientError(FoldlogError):
    """Something went wrong on this device."""

    code = "client-error"


class RecordNotFound(ClientError, LookupError):
    """There is no such record, or it is deleted."""

    code = "record-not-found"


class RecordExists(ClientError):
    """There is a record of this id already."""

    code = "record-exists"


class NotARecord(ClientError, ValueError):
    """This cannot be kept in a record."""

    code = "not-a-record"


class WrongReplica(ClientError):
    """This file is no replica of this space."""

    code = "wrong-replica"


class Unreachable(ClientError):
    """The server gave no answer."""

    code = "unreachable"


class ServerProblem(ClientError):
    """The server answered with a problem."""

    code = "server-problem"

    def __init__(self, status: int, document: dict[str, Any], retry_after_seconds: float | None):
        self.status = status
        self.problem = str(document.get("code", "unknown"))
        self.document = document
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{self.problem}: {document.get('detail', f'status {status}')}")
