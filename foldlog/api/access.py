"""Who may call what only an admin may."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from ..domain.errors import Forbidden, Unauthenticated
from .requests import Request

Access = Callable[[Request], None]


def admin_only(token: str | None) -> Access:
    """Lets a request pass that carries the admin's token (RFC 6750 section 2.1).

    Without a token nobody is an admin. Raises `Unauthenticated` or `Forbidden`.
    """

    def check(request: Request) -> None:
        if not token:
            raise Forbidden("no admin token is set: FOLDLOG_ADMIN_TOKEN")
        scheme, _, given = request.header("authorization").partition(" ")
        matches = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not matches:
            raise Unauthenticated

    return check
