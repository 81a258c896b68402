"""Decides which web pages may call the service from a browser (CORS):
https://fetch.spec.whatwg.org/#http-cors-protocol

CORS headers are sent only if the operator has configured allowed origins. The origin `*`, which
allows all web pages, is as safe as a list of origins: the service uses tokens instead of cookies,
so a page has only the rights of a token that the page itself sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .replies import Reply

ANY = "*"
EXPOSED = {"Access-Control-Expose-Headers": "*"}
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Encoding, "
    "Last-Event-ID, If-None-Match, Cache-Control, X-Request-Id",
    "Access-Control-Max-Age": "7200",  # the longest time that Chromium accepts
}


@dataclass(frozen=True)
class Cors:
    """Holds the origins whose web pages may call the service; `*` allows all origins. If `origins`
    is empty, browsers block the calls of pages from other origins."""

    origins: tuple[str, ...] = ()

    def headers(self, origin: str) -> Mapping[str, str]:
        """Returns the CORS headers for a response to a web page of the given origin, as a dict from
        names to values. If no origins are configured, the dict is empty.

        Send these headers with error responses too, because without them the browser hides the
        error from the page.
        """
        if not self.origins:
            return {}
        if self.origins == (ANY,):
            return {"Access-Control-Allow-Origin": ANY, **EXPOSED}
        if origin in self.origins:
            return {"Access-Control-Allow-Origin": origin, **EXPOSED, "Vary": "Origin"}
        return {"Vary": "Origin"}  # a cache must not serve this answer to an allowed page

    def preflight(self, method: str, header: Callable[[str], str]) -> Reply | None:
        """Returns the response to a CORS preflight request of an allowed origin. Returns `None` if
        the origin is not allowed, or if the request is no preflight request.

        Call it before the access check, because browsers send preflight requests without a token.
        """
        if method != "OPTIONS" or not header("access-control-request-method"):
            return None
        if "Access-Control-Allow-Origin" not in self.headers(header("origin")):
            return None
        return Reply(b"", "text/plain", headers=dict(PREFLIGHT))
