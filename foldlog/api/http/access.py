"""Whom a request comes from, and whether they may do what it asks for.

Every operation names the right that it needs, and this decides before anything else is looked at.
Who calls is found by the token (RFC 6750 section 2.1), in the space that the path names: so a token
of another space is like none, and nobody learns which other spaces there are.

A caller is remembered for `CALLER_SECONDS_MAX`, and whoever revokes something waits for as long
before it is said to be done: afterwards no process knows of it any more. A pull that has nothing
to tell is answered without the database, so there a caller is remembered for longer, as long as
nothing was appended to the log of the space: a revocation would have been. A stream looks at its
caller once its first page is read, and before each page that tells of a revocation: so none is ever
passed over. A download looks again at each piece.
"""

from __future__ import annotations

import hmac
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, Protocol

from foldlog.domain.access import EVERY_SPACE, RIGHTS, Caller, Claims, Right, Role, digest_of
from foldlog.domain.errors import DeviceRevoked, Forbidden, Unauthenticated
from foldlog.domain.names import is_loopback
from foldlog.domain.ports import EventStore, Registry

from .requests import Request

CALLER_SECONDS_MAX = 1.0
#: ... if nothing was appended since
IDLE_CALLER_SECONDS_MAX = 60.0
CALLERS_KEPT_MAX = 20_000
#: of what is no token of ours, and longer than any JWT should be
TOKEN_LENGTH_MAX = 8 * 2**10

#: what a proxy tells: whoever comes by way of one need not be on this machine
OF_PROXIES = ("x-forwarded-for", "forwarded", "via")

ANYBODY = Caller("", frozenset({Right.PUBLIC}))
ANYBODY_HERE = Caller("", frozenset(Right), is_any_device=True, is_of_every_space=True)


class Access(ABC):
    """Who may do what."""

    @abstractmethod
    async def admit(
        self,
        request: Request,
        space: str,
        right: Right,
        *,
        from_cache: bool = False,
        since: int | None = None,
    ) -> Caller:
        """Who calls, if they have this right in the space; `EVERY_SPACE` if none was named.

        `at_hand`: what is told has all that was appended to the log, or nothing. `since`: whoever
        was revoked up to this seq is not let in, however lately they were. Raises
        `Unauthenticated`, `Forbidden`, `DeviceRevoked`, `RateLimited`, `StorageUnavailable`.
        """

    def forget(self) -> None:
        """Something was revoked. Returns when no process remembers it."""
        return


class OpenAccess(Access):
    """Everybody on this machine may do all, but what is an admin's, which needs the admin's token.

    For tests, and for a developer. A page that he visits is not him: its own name may resolve to
    this machine (DNS rebinding), but it is still the name that its browser asks for.
    """

    def __init__(self, admin_token: str | None = None):
        self._admin_token = admin_token

    async def admit(
        self,
        request: Request,
        space: str,
        right: Right,
        *,
        from_cache: bool = False,
        since: int | None = None,
    ) -> Caller:
        if not is_loopback(request.header("host")) or any(map(request.header, OF_PROXIES)):
            raise Forbidden("open to this machine alone: as localhost, and through no proxy")
        if right is Right.ADMIN:
            if not self._admin_token:
                raise Forbidden("no admin token is set: FOLDLOG_ADMIN_TOKEN")
            request.rates.check_unknown_caller(request)
            if not is_token(token_of(request), self._admin_token):
                raise Unauthenticated
        return ANYBODY_HERE


class Jwts(Protocol):
    """Reads the tokens of an app's own sign-in."""

    def read(self, text: str) -> Claims:
        """Raises `Unauthenticated`, `StorageUnavailable`."""


class _Known(NamedTuple):
    caller: Caller
    looked_at: float  #: before it was
    head: int | None  #: of the space's log, as it was known before


class TokenAccess(Access):
    """Nobody may do anything without a token: an opaque one of ours, or a JWT of the app."""

    def __init__(
        self,
        registry: Registry,
        store: EventStore,
        *,
        admin_token: str | None = None,
        jwts: Jwts | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._registry = registry
        self._store = store
        self._admin_token = admin_token
        self._jwts = jwts
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._known: dict[tuple[str, bytes], _Known] = {}  # those found last are the last
        self._lock = Lock()

    async def admit(
        self,
        request: Request,
        space: str,
        right: Right,
        *,
        from_cache: bool = False,
        since: int | None = None,
    ) -> Caller:
        if right is Right.PUBLIC:
            return ANYBODY
        token = token_of(request)
        if not token or len(token) > TOKEN_LENGTH_MAX:
            raise Unauthenticated
        digest = digest_of(token)
        caller = self._remembered(space, digest, from_cache, since)
        if caller is None:
            if (space, digest) not in self._known:
                request.rates.check_unknown_caller(request)
            caller = await request.look_up(self._look, space, token, digest)
        request.caller = caller  # also of who may not: the log says who it was
        caller.check(right)
        return caller

    def forget(self) -> None:
        with self._lock:
            # Looked up again, but not as strangers: those may have to wait.
            self._known = {
                key: known._replace(looked_at=-math.inf, head=None)
                for key, known in self._known.items()
            }
        self._sleep(CALLER_SECONDS_MAX)

    def _remembered(
        self, space: str, digest: bytes, from_cache: bool, since: int | None
    ) -> Caller | None:
        known = self._known.get((space, digest))
        if known is None or self._now() * 1000 >= known.caller.expires_at:
            return None
        if since is not None and (known.head is None or known.head < since):
            return None
        age = self._clock() - known.looked_at
        if age < CALLER_SECONDS_MAX:
            return known.caller
        if not from_cache or age > IDLE_CALLER_SECONDS_MAX or known.caller.is_of_every_space:
            return None
        is_idle = known.head is not None and known.head == self._store.cached_head(space)
        return known.caller if is_idle else None

    def _look(self, space: str, token: str, digest: bytes) -> Caller:
        looked_at, head = self._clock(), self._store.cached_head(space)
        try:
            caller = self._find(space, token, digest)
        except Unauthenticated:
            with self._lock:
                self._known.pop((space, digest), None)  # from now on it is a stranger's
            raise
        with self._lock:
            self._known.pop((space, digest), None)
            if len(self._known) >= CALLERS_KEPT_MAX:
                del self._known[next(iter(self._known))]
            self._known[space, digest] = _Known(caller, looked_at, head)
        return caller

    def _find(self, space: str, token: str, digest: bytes) -> Caller:
        if self._admin_token and is_token(token, self._admin_token):
            return Caller("admin token", RIGHTS[Role.ADMIN], is_of_every_space=True)
        if self._jwts is not None and token.count(".") == 2:
            return self._of_jwt(space, self._jwts.read(token))
        found = self._registry.token(space, digest)
        if found is None or not found.is_valid(int(self._now() * 1000)):
            raise Unauthenticated
        return found.caller()

    def _of_jwt(self, space: str, claims: Claims) -> Caller:
        if space == EVERY_SPACE or space not in claims.spaces:
            raise Forbidden("this token is not for what is asked for")
        if claims.device is not None and self._registry.is_revoked(space, claims.device):
            raise DeviceRevoked(f"the device {claims.device} was revoked")
        return claims.caller()


def token_of(request: Request) -> str:
    """What came as a bearer token; empty if nothing did."""
    scheme, _, given = request.header("authorization").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def is_token(given: str, token: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(digest_of(given), digest_of(token))
