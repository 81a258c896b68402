"""Whose pages a browser lets call us: https://fetch.spec.whatwg.org/#http-cors-protocol.

Nothing of it is sent unless origins are set. There are no cookies here, so a page has no more
rights than the token that it brings along, and `*` is no weaker than a list.
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
    "Access-Control-Max-Age": "7200",  # no browser but Firefox keeps it for longer
}


@dataclass(frozen=True)
class Cors:
    """Exact origins, or `*`; without any, other pages are left out."""

    origins: tuple[str, ...] = ()

    def headers(self, origin: str) -> Mapping[str, str]:
        """What every answer bears, refusals too: else a page could not read why."""
        if not self.origins:
            return {}
        if self.origins == (ANY,):
            return {"Access-Control-Allow-Origin": ANY, **EXPOSED}
        if origin in self.origins:
            return {"Access-Control-Allow-Origin": origin, **EXPOSED, "Vary": "Origin"}
        return {"Vary": "Origin"}  # a cache must not hand this one to a page that may

    def preflight(self, method: str, header: Callable[[str], str]) -> Reply | None:
        """The answer to a browser that asks whether a page may; `None` if that is not asked.

        It comes before anybody's rights are looked at, for it carries no token.
        """
        if method != "OPTIONS" or not header("access-control-request-method"):
            return None
        if "Access-Control-Allow-Origin" not in self.headers(header("origin")):
            return None
        return Reply(b"", "text/plain", headers=dict(PREFLIGHT))
