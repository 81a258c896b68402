"""Decides which web pages may call the service from a browser (CORS):
https://fetch.spec.whatwg.org/#http-cors-protocol

CORS headers are sent only if allowed origins are configured. To allow every origin (`*`) is as safe
as a list of origins, because the service uses tokens instead of cookies: a page has only the rights
of the token that it sends.
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
    """The origins whose web pages may call the service; `*` means all. By default, browsers refuse
    pages of other origins."""

    origins: tuple[str, ...] = ()

    def headers(self, origin: str) -> Mapping[str, str]:
        """Returns the CORS headers for a response to a page of this origin.

        Error responses have them too, because the browser lets the page read only responses with
        these headers.
        """
        if not self.origins:
            return {}
        if self.origins == (ANY,):
            return {"Access-Control-Allow-Origin": ANY, **EXPOSED}
        if origin in self.origins:
            return {"Access-Control-Allow-Origin": origin, **EXPOSED, "Vary": "Origin"}
        return {"Vary": "Origin"}  # a cache must not serve this answer to an allowed page

    def preflight(self, method: str, header: Callable[[str], str]) -> Reply | None:
        """Returns the response to a CORS preflight request, or `None` for any other request or a
        refused origin.

        Browsers send preflight requests without a token, so they are answered before the access
        check.
        """
        if method != "OPTIONS" or not header("access-control-request-method"):
            return None
        if "Access-Control-Allow-Origin" not in self.headers(header("origin")):
            return None
        return Reply(b"", "text/plain", headers=dict(PREFLIGHT))
