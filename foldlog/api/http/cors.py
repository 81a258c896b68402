"""Which pages may call the service from a browser: the CORS protocol of the Fetch standard
(https://fetch.spec.whatwg.org/#http-cors-protocol).

The headers are sent only if origins are configured. The service uses no cookies, so a page has the
rights of the token that it sends, and `*` is as safe as a list.
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
    """The allowed origins, or `*`. By default pages of other origins are refused."""

    origins: tuple[str, ...] = ()

    def headers(self, origin: str) -> Mapping[str, str]:
        """Returns the headers of every answer. Problems have them too, so that a page can read
        them."""
        if not self.origins:
            return {}
        if self.origins == (ANY,):
            return {"Access-Control-Allow-Origin": ANY, **EXPOSED}
        if origin in self.origins:
            return {"Access-Control-Allow-Origin": origin, **EXPOSED, "Vary": "Origin"}
        return {"Vary": "Origin"}  # a cache must not serve this answer to an allowed page

    def preflight(self, method: str, header: Callable[[str], str]) -> Reply | None:
        """Returns the answer to a preflight request; `None` for other requests.

        A preflight request carries no token, so it is answered before access is checked.
        """
        if method != "OPTIONS" or not header("access-control-request-method"):
            return None
        if "Access-Control-Allow-Origin" not in self.headers(header("origin")):
            return None
        return Reply(b"", "text/plain", headers=dict(PREFLIGHT))
