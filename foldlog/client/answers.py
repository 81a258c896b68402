"""What an answer over HTTP comes to: a problem that the server tells, or that there was none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec

from .errors import ServerProblem, Unreachable

_decode = msgspec.json.decode


@contextmanager
def reaching() -> Iterator[None]:
    """Whatever keeps an answer from coming is `Unreachable`."""
    try:
        yield
    except httpx.HTTPError as exc:
        raise Unreachable(str(exc) or type(exc).__name__) from exc


def not_ours() -> Unreachable:
    """Say, a portal where somebody has to sign in first."""
    return Unreachable("what answered is not Foldlog")


def problem_of(response: httpx.Response) -> ServerProblem:
    """The problem that an answer, read to its end, is."""
    try:
        document = _decode(response.content)
    except msgspec.DecodeError:
        document = None
    if not isinstance(document, dict):
        document = {"code": "unknown", "detail": f"status {response.status_code}"}
    retry_after = seconds(response.headers.get("Retry-After"))
    return ServerProblem(response.status_code, document, retry_after)


def seconds(text: str | None) -> float | None:
    """A header that may be a number of seconds. A date is not worth a calendar here."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
