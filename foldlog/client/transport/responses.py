"""Turns failed HTTP requests into the errors `ServerProblem` and `Unreachable`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec

from foldlog.client.errors import ServerProblem, Unreachable

_decode = msgspec.json.decode


@contextmanager
def translated() -> Iterator[None]:
    """Converts each error that the HTTP client raises in the `with` block to `Unreachable`."""
    try:
        yield
    except httpx.HTTPError as exc:
        raise Unreachable(str(exc) or type(exc).__name__) from exc


def not_foldlog() -> Unreachable:
    """Returns an `Unreachable` error, which the caller raises when an answer came from another
    server, for example from a Wi-Fi sign-in page.
    """
    return Unreachable("the answer did not come from a Foldlog server")


def problem_of(response: httpx.Response) -> ServerProblem:
    """Converts an HTTP error response to a `ServerProblem` with the response's problem
    document. The caller must have read the body.
    """
    try:
        document = _decode(response.content)
    except msgspec.DecodeError:
        document = None
    if not isinstance(document, dict):
        document = {"code": "unknown", "detail": f"status {response.status_code}"}
    retry_after_seconds = seconds_from(response.headers.get("Retry-After"))
    return ServerProblem(response.status_code, document, retry_after_seconds)


def seconds_from(text: str | None) -> float | None:
    """Parses the value of a header such as `Retry-After` as a number of seconds. Returns `None`
    if the header is missing or has a date.
    """
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
