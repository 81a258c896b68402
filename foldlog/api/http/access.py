"""Finds the caller of a request, and checks that the caller has the right that the operation needs.

This check comes before any other work on the request. A request identifies its caller by a bearer
token (RFC 6750 section 2.1). The service looks up this token among the tokens of the space that the
path names. If the token belongs to another space, the look-up finds nothing, and the error is the
same whether that other space exists or not.

Each process caches the callers that it has looked up, for `CALLER_SECONDS_MAX` seconds. If an admin
sends a request to revoke a token or a device, the service waits for that time before it sends the
response. When the admin receives the response, every process therefore refuses the revoked caller.
Some requests read only the newest events of a log, which each process has in memory. For these
requests a cached caller is valid for up to `IDLE_CALLER_SECONDS_MAX` seconds, as long as the log is
unchanged: a revocation would have added an event to the log.

A stream checks its caller after it has read its first page, and before it sends a page that
contains a revocation. A download checks its caller before it sends each piece.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import NamedTuple, Protocol

from foldlog.domain.access import (
    EVERY_SPACE,
    RIGHTS,
    Caller,
    Claims,
    Right,
    Role,
    digest_of,
)
from foldlog.domain.errors import DeviceRevoked, Forbidden, Unauthenticated
from foldlog.domain.names import is_loopback
from foldlog.domain.ports import EventStore, Registry

from .requests import Request

#: how long a caller is cached, in seconds
CALLER_SECONDS_MAX = 1.0
#: how long a caller of an idle space is cached, in seconds
IDLE_CALLER_SECONDS_MAX = 60.0
CALLERS_KEPT_MAX = 20_000
#: In characters. Tokens of Foldlog are shorter, and JWTs should be.
TOKEN_LENGTH_MAX = 8 * 2**10

#: Headers of proxies: a request that has one may come from another machine.
PROXY_HEADERS = ("x-forwarded-for", "forwarded", "via")

ANONYMOUS = Caller("", frozenset({Right.PUBLIC}))
LOCAL_CALLER = Caller("", frozenset(Right), is_any_device=True, is_of_every_space=True)


class Access(ABC):
    """Decides whether a caller may use an operation."""

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
        """Returns the caller of the request if the caller has `right` in `space`.

        For a path that names no space, pass `EVERY_SPACE`. Pass `from_cache=True` only if the
        response is either an empty list or contains every event up to the head of the log. In
        that case a cached caller is accepted for up to `IDLE_CALLER_SECONDS_MAX` seconds while the
        log is unchanged, because a revocation would have added an event to the log. If `since` is
        the seq of an event, the method accepts a cached caller only if the caller was looked up
        after that event.

        Raises `Unauthenticated` if the token is missing or invalid. Raises `DeviceRevoked` if the
        token is a JWT of a device that was revoked. Raises `Forbidden` if the caller lacks the
        right, or may not use this space. Raises `RateLimited` if too many wrong tokens came from
        the client's address. Raises `StorageUnavailable` if the service cannot look up the token.
        """

    async def forget(self) -> None:
        """Makes every process look up its callers again. Call it after a revocation. The method
        marks the cached callers of this process as expired, and then waits until the cached callers
        of all other processes have expired too."""
        return


class OpenAccess(Access):
    """Allows requests from this machine to use all operations, for tests and development. Only the
    operations for admins need a token: the admin token.

    The method `admit` raises `Forbidden` if a request came through a proxy, or if its `Host` header
    is anything else than a loopback name or address. The check of `Host` also refuses web pages
    that reach the service by DNS rebinding, because their requests have the host name of the page
    in this header.
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
        if not is_loopback(request.header("host")) or any(map(request.header, PROXY_HEADERS)):
            raise Forbidden("open to this machine alone: as localhost, and through no proxy")
        if right is Right.ADMIN:
            if not self._admin_token:
                raise Forbidden("no admin token is set: FOLDLOG_ADMIN_TOKEN")
            request.rates.check_unknown_caller(request.subject)
            if not is_token(token_of(request), self._admin_token):
                raise Unauthenticated
        return LOCAL_CALLER


class Jwts(Protocol):
    """Verifies JSON Web Tokens (JWTs). They are issued by the sign-in service of the app that uses
    Foldlog, and not by Foldlog."""

    def read(self, text: str) -> Claims:
        """Verifies a JWT. Returns its contents as `Claims`: the user, the user's spaces and rights,
        the device and the time of expiry.

        Raises `Unauthenticated` if the JWT is invalid. Raises `StorageUnavailable` if the public
        keys of the sign-in cannot be read.
        """


class _CachedCaller(NamedTuple):
    caller: Caller
    looked_up_at: float  #: the clock just before the look-up
    head: int | None  #: of the space's log, as it was known just before the look-up


class TokenAccess(Access):
    """Requires a valid token for every operation except the public ones. The token is either a
    token that Foldlog granted, the admin token, or a JWT of the app's own sign-in."""

    def __init__(
        self,
        registry: Registry,
        store: EventStore,
        *,
        admin_token: str | None = None,
        jwts: Jwts | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._registry = registry
        self._store = store
        self._admin_token = admin_token
        self._jwts = jwts
        self._clock = clock
        self._now = now
        self._sleep = sleep
        #: by space and token digest, ordered by look-up
        self._cache: dict[tuple[str, bytes], _CachedCaller] = {}
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
            return ANONYMOUS
        token = token_of(request)
        if not token or len(token) > TOKEN_LENGTH_MAX:
            raise Unauthenticated
        digest = digest_of(token)
        caller = self._cached(space, digest, from_cache, since)
        if caller is None:
            if (space, digest) not in self._cache:
                request.rates.check_unknown_caller(request.subject)
            caller = await request.look_up(self._look_up, space, token, digest)
        request.caller = caller  # also when it lacks the right: the log line names it
        caller.check(right)
        return caller

    async def forget(self) -> None:
        with self._lock:
            # The entries are kept as expired ones. Their next look-up therefore does not count as
            # one of an unknown caller, which has a rate limit.
            self._cache = {
                key: cached._replace(looked_up_at=-math.inf, head=None)
                for key, cached in self._cache.items()
            }
        await self._sleep(CALLER_SECONDS_MAX)

    def _cached(
        self, space: str, digest: bytes, from_cache: bool, since: int | None
    ) -> Caller | None:
        cached = self._cache.get((space, digest))
        if cached is None or self._now() * 1000 >= cached.caller.expires_at:
            return None
        if since is not None and (cached.head is None or cached.head < since):
            return None
        age = self._clock() - cached.looked_up_at
        if age < CALLER_SECONDS_MAX:
            return cached.caller
        if not from_cache or age > IDLE_CALLER_SECONDS_MAX or cached.caller.is_of_every_space:
            return None
        is_idle = cached.head is not None and cached.head == self._store.cached_head(space)
        return cached.caller if is_idle else None

    def _look_up(self, space: str, token: str, digest: bytes) -> Caller:
        looked_up_at, head = self._clock(), self._store.cached_head(space)
        try:
            caller = self._find(space, token, digest)
        except Unauthenticated:
            with self._lock:
                self._cache.pop((space, digest), None)  # from now on the token is unknown
            raise
        with self._lock:
            self._cache.pop((space, digest), None)
            if len(self._cache) >= CALLERS_KEPT_MAX:
                del self._cache[next(iter(self._cache))]
            self._cache[space, digest] = _CachedCaller(caller, looked_up_at, head)
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
            raise Forbidden("this token does not cover the requested space")
        if claims.device is not None and self._registry.is_revoked(space, claims.device):
            raise DeviceRevoked(f"the device {claims.device} was revoked")
        return claims.caller()


def token_of(request: Request) -> str:
    """Returns the bearer token from the `Authorization` header of a request. If the request has
    none, the result is an empty text."""
    scheme, _, given = request.header("authorization").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def is_token(given: str, token: str) -> bool:
    """Returns whether two tokens are equal. The comparison takes the same time for all tokens, so
    an attacker learns nothing from its duration."""
    return hmac.compare_digest(digest_of(given), digest_of(token))
