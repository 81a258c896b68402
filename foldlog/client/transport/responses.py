"""HTTP responses that are errors: `ServerProblem` and `Unreachable`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec

from foldlog.client.errors import ServerProblem, Unreachable

_decode = msgspec.json.decode


@contextmanager
def translated() -> Iterator[None]:
    """Raises `Unreachable` for every error of the HTTP client."""
    try:
        yield
    except httpx.HTTPError as exc:
        raise Unreachable(str(exc) or type(exc).__name__) from exc


def not_foldlog() -> Unreachable:
    """Returns the error for an answer of another server, for example a sign-in portal."""
    return Unreachable("the answer did not come from a Foldlog server")


def problem_of(response: httpx.Response) -> ServerProblem:
    """Reads the problem document of an error response, whose body was read before."""
    try:
        document = _decode(response.content)
    except msgspec.DecodeError:
        document = None
    if not isinstance(document, dict):
        document = {"code": "unknown", "detail": f"status {response.status_code}"}
    retry_after_seconds = seconds_from(response.headers.get("Retry-After"))
    return ServerProblem(response.status_code, document, retry_after_seconds)


def seconds_from(text: str | None) -> float | None:
    """Reads a header that is a number of seconds. A date counts as a missing header."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
