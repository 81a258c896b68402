"""Tells what a failed request means: `ServerProblem` for an error of the service, `NotFoldlog` for
an answer of another server, `ConnectionBroke` for half an answer, `Unreachable` for no answer.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx
import msgspec

from foldlog.client.errors import ConnectionBroke, NotFoldlog, ServerProblem, Unreachable

_decode = msgspec.json.decode
_CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
#: how the HTTP client words an answer that is no HTTP, or that redirects to no URL
_NO_HTTP = re.compile("illegal|location header", re.IGNORECASE)
#: no answer makes a client wait longer
SECONDS_MAX = 24 * 3_600.0
#: the most of an error's body that is read: a problem document is far shorter
ERROR_BYTES_MAX = 256 * 2**10


@contextmanager
def translated() -> Iterator[None]:
    """Converts each error that the HTTP client raises in the `with` block to `Unreachable`, or to
    its subclass `ConnectionBroke` if the connection was established before.
    """
    try:
        yield
    except _CONNECTING as exc:
        if _is_about_tls(exc):
            raise NotFoldlog(
                f"the server did not prove to be the one of the URL ({exc}): check the URL, and "
                "the sign-in page of the network"
            ) from exc
        raise Unreachable(_words(exc)) from exc
    except httpx.HTTPError as exc:
        if isinstance(exc, httpx.RemoteProtocolError) and _NO_HTTP.search(str(exc)):
            raise not_foldlog() from exc
        timed_out = isinstance(exc, httpx.TimeoutException)
        raise ConnectionBroke(_words(exc), timed_out=timed_out) from exc


def _words(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _is_about_tls(exc: BaseException) -> bool:
    causes = []
    cause: BaseException | None = exc
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(isinstance(each, ssl.SSLError) for each in causes)


def not_foldlog() -> NotFoldlog:
    """Returns the error for an answer that came from another server, for example from a Wi-Fi
    sign-in page.
    """
    return NotFoldlog(
        "the answer did not come from a Foldlog server: check the URL, and the sign-in page of the "
        "network"
    )


def check_status(response: httpx.Response) -> None:
    """Raises `ServerProblem` if the status of a response is an error, and `NotFoldlog` if the
    response redirects to another address. The service itself never redirects.

    Reads a part of the body of an error.
    """
    if response.is_error:
        raise problem_of(response)
    if not response.is_success:
        raise _redirected(response)


def problem_of(response: httpx.Response) -> ServerProblem:
    """Converts an HTTP error response to a `ServerProblem` with the response's problem document.

    If the body is no problem document, a proxy or another server sent the error. The problem then
    has the code "unknown", and its detail says so.
    """
    document = _problem_document(_beginning(response))
    if document is None:
        detail = (
            f"status {response.status_code}, not from Foldlog but from a proxy or another server"
        )
        document = {"code": "unknown", "detail": detail}
    retry_after_seconds = seconds_from(response.headers.get("Retry-After"))
    return ServerProblem(response.status_code, document, retry_after_seconds)


def _beginning(response: httpx.Response) -> bytes:
    """Reads the body of an error, up to a limit. The token of the request is removed, because a
    proxy may repeat the request's headers in its answer.
    """
    body = b""
    with suppress(httpx.HTTPError):  # the status counts, even if the connection breaks now
        for piece in response.iter_bytes():
            body += piece
            if len(body) > ERROR_BYTES_MAX:
                break
    token = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    return body.replace(token.encode(), b"(the token)") if token else body


def _problem_document(body: bytes) -> dict[str, Any] | None:
    try:
        document = _decode(body)
    except msgspec.DecodeError:
        return None
    is_ours = isinstance(document, dict) and isinstance(document.get("code"), str)
    return document if is_ours else None


def _redirected(response: httpx.Response) -> NotFoldlog:
    """Returns the error for a redirect. If the redirect only changes the scheme to `https`, the
    error has the URL to use.
    """
    asked = urlsplit(str(response.request.url))
    try:
        location = urlsplit(urljoin(asked.geturl(), response.headers.get("Location", "")))
        is_same_host = location.hostname == asked.hostname
    except ValueError:
        return not_foldlog()
    if location.scheme == "https" and asked.scheme == "http" and is_same_host:
        url = f"https://{_authority(location)}{_prefix(location.path)}"
        return NotFoldlog(
            f"the server redirects to https: open the replica with server={url!r}", url
        )
    if location.hostname and not is_same_host:
        return NotFoldlog(
            f"the answer redirects to the host {location.hostname}: check the URL, and the sign-in "
            "page of the network"
        )
    return not_foldlog()


def _authority(location: SplitResult) -> str:
    return location.netloc.rpartition("@")[2]


def _prefix(path: str) -> str:
    """Returns the part of a path that belongs to the server's URL: the part before `/v1/`."""
    before, found, _ = path.partition("/v1/spaces/")
    return before if found else ""


def seconds_from(text: str | None) -> float | None:
    """Parses the value of a header such as `Retry-After` as a number of seconds. Returns `None`
    if the header is missing or has a date. The result is at most a day.
    """
    try:
        return min(SECONDS_MAX, max(0.0, float(text))) if text else None
    except ValueError:
        return None
