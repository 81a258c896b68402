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
    """Raises `Unreachable` instead of each error that the HTTP client raises in the `with`
    block.
    """
    try:
        yield
    except httpx.HTTPError as exc:
        raise Unreachable(str(exc) or type(exc).__name__) from exc


def not_foldlog() -> Unreachable:
    """Returns the error for an answer that came from another server, for example a Wi-Fi
    sign-in page.
    """
    return Unreachable("the answer did not come from a Foldlog server")


def problem_of(response: httpx.Response) -> ServerProblem:
    """Returns the error for an error response, with its problem document. The caller must have
    read the body.
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
    """Parses a header such as `Retry-After` as a number of seconds. Returns `None` for a
    missing header or a date.
    """
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
