"""Converts errors to problem documents (RFC 9457), and defines the HTTP status of each error.

The `code` of a problem is a name for programs that stays the same in later versions. The `type` is
the URL of a page about the problem. Requests for unknown paths, and unexpected errors, are answered
with a problem document too.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
import structlog

from foldlog.domain.errors import (
    DefinitionConflict,
    FoldlogError,
    Forbidden,
    InvalidChangeset,
    InvalidRequest,
    InvalidSchema,
    LimitExceeded,
    NotFound,
    NotStopped,
    PushConflict,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from foldlog.domain.witness import InconsistentCheckpoint

from .access import token_of
from .replies import Reply
from .requests import Request

log = structlog.get_logger("foldlog.api")

MEDIA_TYPE = "application/problem+json"
#: RFC 6750 section 3
INVALID_TOKEN = 'Bearer error="invalid_token"'  # noqa: S105
INSUFFICIENT_SCOPE = 'Bearer error="insufficient_scope"'
TEXT_LENGTH_MAX = 500
ERRORS_MAX = 20


class UnsupportedMediaType(InvalidRequest):
    """The body has an unsupported media type or encoding."""

    code = "unsupported-media-type"


class MethodNotAllowed(InvalidRequest):
    """This path has no such method."""

    code = "method-not-allowed"

    def __init__(self, message: str | None = None, *, allowed: Iterable[str] = ()):
        super().__init__(message)
        self.allowed = tuple(allowed)  #: the methods that the path takes


class NoSuchPath(NotFound):
    """This path is unknown."""

    code = "no-such-path"


class NotReady(Unavailable):
    """The service is not ready to handle requests."""

    code = "not-ready"


class InternalError(FoldlogError):
    """The service had an unexpected error and has logged it."""

    code = "internal-error"


#: An error has the status of its nearest base class in this table. If it has none here, the
#: error is a bug of the service, and the status is 500.
STATUS_OF: dict[type[FoldlogError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    InvalidChangeset: HTTPStatus.UNPROCESSABLE_ENTITY,
    LimitExceeded: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidSchema: HTTPStatus.UNPROCESSABLE_ENTITY,
    InconsistentCheckpoint: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    PushConflict: HTTPStatus.CONFLICT,
    DefinitionConflict: HTTPStatus.CONFLICT,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    NotStopped: HTTPStatus.CONFLICT,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: A request that exceeds one of these limits gets 413, so that the client sends a smaller batch.
LIMITS_OF_SIZE = {
    "body_bytes_max",
    "small_body_bytes_max",
    "inflated_bytes_max",
    "values_per_body_max",
    "unreadable_bytes_max",
    "changesets_per_push_max",
    "operations_per_push_max",
    "page_bytes_max",
    "looked_up_bytes_max",
    "schema_steps_per_push_max",
    "erase_records_max",
}


def statuses_of(error: type[FoldlogError]) -> tuple[HTTPStatus, ...]:
    """Returns a tuple of the HTTP statuses that a response with this class of error can have: one
    status, or two for `LimitExceeded`."""
    usual = next(
        (STATUS_OF[kind] for kind in error.__mro__ if kind in STATUS_OF),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    too_large = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE,) if issubclass(error, LimitExceeded) else ()
    return (*too_large, usual)


def status_of(error: FoldlogError) -> HTTPStatus:
    # An error with an index is about a single changeset, so a smaller batch would fail as well.
    is_divisible = isinstance(error, LimitExceeded) and "index" not in error.extra
    if is_divisible and error.extra["limit"] in LIMITS_OF_SIZE:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return statuses_of(type(error))[-1]


def title_of(error: type[FoldlogError]) -> str:
    """Returns the title of a problem, which is the first line of the docstring of its error
    class."""
    return (error.__doc__ or "").strip().splitlines()[0].rstrip(".")


def document_of(error: FoldlogError) -> dict[str, Any]:
    return {
        "type": f"/problems/{error.code}",
        "title": title_of(type(error)),
        "status": status_of(error).value,
        "detail": _clipped(str(error)),
        "code": error.code,
        **_clipped(error.extra),
    }


def _clipped(value: Any) -> Any:
    """Returns a copy of `value`, a member of a problem document, in which long texts and long lists
    of errors are shortened.

    Otherwise a large request could get a large error response, because errors may repeat parts of
    the request.
    """
    if isinstance(value, str):
        return value if len(value) <= TEXT_LENGTH_MAX else f"{value[:TEXT_LENGTH_MAX]}..."
    if isinstance(value, dict):
        shorter = {"errors": _first_of(value["errors"])} if "errors" in value else {}
        return {name: _clipped(member) for name, member in (value | shorter).items()}
    if isinstance(value, list):
        return list(map(_clipped, value))
    return value


def _first_of(errors: list[dict[str, str]]) -> list[dict[str, str]]:
    first, more = errors[:ERRORS_MAX], len(errors) - ERRORS_MAX
    return [*first, {"detail": f"and {more} more"}] if more > 0 else first


def problem_reply(error: Exception, request: Request) -> Reply:
    """Makes the response for an error, and sets the headers that its status requires.

    For a `FoldlogError`, the body is the problem document of this error. Any other error is logged
    with its traceback, and the body is the problem document of an `InternalError`, which contains
    only the id of the request. If the token of the request is invalid, the function adds one to the
    number of wrong tokens that came from the client's IP address.
    """
    if not isinstance(error, FoldlogError) or _is_unexpected(error):
        # The request's id leads an operator to the log line.
        log.error("unexpected-error", exc_info=error)
        error = InternalError(request_id=request.id)
    elif error.__cause__ is not None and isinstance(error, Unavailable):
        log.warning("unavailable", problem=error.code, exc_info=error)
    request.problem = error.code
    reply = Reply(msgspec.json.encode(document_of(error)), MEDIA_TYPE, status_of(error).value)
    if isinstance(error, Unavailable):
        reply.headers["Retry-After"] = str(error.retry_after_seconds)
    if challenge := _challenge(error, has_token=bool(token_of(request))):
        reply.headers["WWW-Authenticate"] = challenge
    if challenge == INVALID_TOKEN:
        request.rates.count_wrong_token(request.subject)
    if isinstance(error, MethodNotAllowed):
        reply.headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, UnsupportedMediaType):
        # RFC 9110 sections 12.5.1 and 12.5.3: the types and encodings that are accepted
        reply.headers["Accept"] = "application/json"
        reply.headers["Accept-Encoding"] = "gzip, zstd"
    return reply


def _challenge(error: FoldlogError, has_token: bool) -> str | None:
    """Returns the value of the `WWW-Authenticate` header (RFC 6750 section 3) if the token is
    missing, if the token is invalid, or if the caller of the token lacks a right. For other errors,
    returns `None`."""
    if isinstance(error, Unauthenticated):
        return INVALID_TOKEN if has_token else "Bearer"
    return INSUFFICIENT_SCOPE if has_token and type(error) is Forbidden else None


def _is_unexpected(error: FoldlogError) -> bool:
    is_fault = status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR
    return is_fault and not isinstance(error, InternalError)
