"""How much a client may ask for: per second, and open at a time.

Each request takes from two buckets: of its address, before anything is looked at, and of its
caller, once it is known who that is. A body takes more, by its bytes, as they come. Whoever has
emptied a bucket is answered 429 until it has filled again.

A wrong token takes from a third one, of its address too. When that is empty, no token is looked up
that was not found good before: guesses stay slow, and whoever shares the address goes on.

A bucket is one number, the time at which it will be full again (the "generic cell rate algorithm"
of ATM). So it needs no clock of its own and no thread, and what is kept of strangers is bounded.
Each process counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network, IPv6Network, ip_address
from threading import Lock
from typing import TYPE_CHECKING

import structlog

from foldlog.domain.errors import RateLimited
from foldlog.domain.limits import Limits

if TYPE_CHECKING:
    from .requests import Request

log = structlog.get_logger("foldlog.api")

#: Whether the process lives is told to anybody: who floods an address has nobody restart us.
UNLIMITED_PATH = "/healthz"
#: names of limits of what may be open at a time
STREAMS, DOWNLOADS = "streams_per_caller_max", "downloads_per_caller_max"
#: buckets that are not full; of more, the one that was not touched for longest counts as full
BUCKETS_MAX = 100_000
#: What an answer has beyond this counts as a body's bytes do.
ANSWER_BYTES_FREE = 64 * 2**10
#: A house has as many addresses of IPv6 as it likes, but one prefix of this length.
IPV6_PREFIX_BITS = 64

Network = IPv4Network | IPv6Network


class Buckets:
    """A bucket for each key, filled by `rate` a second; full at first, and then never fuller."""

    def __init__(self, rate: int, burst_seconds: int, clock: Callable[[], float]):
        self._seconds_each = 1 / rate
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._full_at: dict[str, float] = {}  # those touched last are the last
        self._lock = Lock()

    def take(self, key: str) -> float:
        """Takes one, and returns 0; or nothing, and returns for how many seconds there is none."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.pop(key, now), now) + self._seconds_each
            missing = full_at - now - self._burst_seconds
            if missing > 0:
                full_at -= self._seconds_each
            self._keep(key, full_at)
        return max(0.0, missing)

    def missing(self, key: str) -> float:
        """For how many seconds there is none; 0 if there is one. Takes nothing."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(key, now), now) + self._seconds_each
        return max(0.0, full_at - now - self._burst_seconds)

    def charge(self, key: str, count: float, own: float = 0) -> float:
        """Takes so many, whether there are so many or not: whoever comes next waits for it.

        No longer than a whole bucket takes to fill: others may share the key. Returns by how many
        seconds it was overdrawn before, by others than whoever has taken `own` of it himself.
        """
        with self._lock:
            now = self._clock()
            before = max(self._full_at.pop(key, now), now)
            full_at = before + count * self._seconds_each
            self._keep(key, min(full_at, now + 2 * self._burst_seconds))
        return max(0.0, before - now - self._burst_seconds - own * self._seconds_each)

    def _keep(self, key: str, full_at: float) -> None:
        if len(self._full_at) >= BUCKETS_MAX:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[key] = full_at


class Lease:
    """One of the streams that a client may have open, until it is let go of or forgotten."""

    def __init__(self, release: Callable[[], None] = lambda: None):
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Lets go if what is done here fails: a failure keeps what its traceback names, and itself,
        until garbage is collected, which is seldom."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # an answer that never began has nobody else to do it


class Rates:
    """No limits; what requests have that nobody holds to any."""

    def check_address(self, request: Request) -> None:
        """Before anything is done for it. Raises `RateLimited`."""

    def check_caller(self, request: Request) -> None:
        """When it is known who calls. Raises `RateLimited`."""

    def count_body(self, request: Request, size: int) -> None:
        """More of a body has come: so many bytes, inflated. Raises `RateLimited` for a long one,
        if others have emptied its bucket meanwhile."""

    def check_waited(self, request: Request) -> None:
        """When what was let in has its turn. Raises `RateLimited` if others have overdrawn its
        bucket meanwhile. Takes nothing."""

    def count_answer(self, request: Request, size: int) -> None:
        """So many bytes are kept until the client has taken them, be it ever so slow."""
        if size > ANSWER_BYTES_FREE:
            with suppress(RateLimited):  # whoever comes next is
                self.count_body(request, size - ANSWER_BYTES_FREE)

    def check_unknown_caller(self, request: Request) -> None:
        """Before a token is looked up that is not known to be good. Raises `RateLimited`."""

    def count_wrong_token(self, request: Request) -> None: ...

    def hold(self, request: Request, limit: str = STREAMS) -> Lease:
        """For what stays open. Raises `RateLimited`."""
        return Lease()


NO_RATES = Rates()


class LimitedRates(Rates):
    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._callers = self._buckets(limits.requests_per_second_per_caller, clock)
        self._addresses = self._buckets(limits.requests_per_second_per_address, clock)
        self._wrong_tokens = self._buckets(limits.wrong_tokens_per_second_per_address, clock)
        #: by limit and caller
        self._open: Counter[tuple[str, str]] = Counter()
        self._lock = Lock()

    def _buckets(self, rate: int, clock: Callable[[], float]) -> Buckets | None:
        return Buckets(rate, self._limits.burst_seconds, clock) if rate else None

    def check_address(self, request: Request) -> None:
        if self._addresses is not None and request.address:
            missing = self._addresses.take(request.address)
            if missing:
                raise self._too_fast("requests_per_second_per_address", missing)

    def check_caller(self, request: Request) -> None:
        caller = caller_of(request)
        if self._callers is not None and caller:
            missing = self._callers.take(caller)
            if missing:
                raise self._too_fast("requests_per_second_per_caller", missing)

    def count_body(self, request: Request, size: int) -> None:
        count = size / self._limits.bytes_per_request_counted
        self._charge(request, count, refuses=request.charged + count > 1)

    def check_waited(self, request: Request) -> None:
        self._charge(request, 0, refuses=True)

    def _charge(self, request: Request, count: float, *, refuses: bool) -> None:
        # Not refused for what is its own: or one that is larger than a bucket could never come.
        own = 1 + request.charged
        request.charged += count
        caller = caller_of(request)
        if self._addresses is not None and request.address:
            missing = self._addresses.charge(request.address, count, own)
            if missing and refuses:
                raise self._too_fast("requests_per_second_per_address", missing)
        if self._callers is not None and caller:
            missing = self._callers.charge(caller, count, own)
            if missing and refuses:
                raise self._too_fast("requests_per_second_per_caller", missing)

    def check_unknown_caller(self, request: Request) -> None:
        if self._wrong_tokens is not None and request.address:
            missing = self._wrong_tokens.missing(request.address)
            if missing:
                raise self._too_fast("wrong_tokens_per_second_per_address", missing)

    def count_wrong_token(self, request: Request) -> None:
        if self._wrong_tokens is not None and request.address:
            self._wrong_tokens.charge(request.address, 1)

    def hold(self, request: Request, limit: str = STREAMS) -> Lease:
        most, caller = getattr(self._limits, limit), rate_key(request)
        if not most or not caller:
            return Lease()
        key = (limit, caller)
        with self._lock:
            if self._open[key] >= most:
                raise RateLimited(limit, most, retry_after_seconds=30)
            self._open[key] += 1
        return Lease(lambda: self._release(key))

    def _release(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    def _too_fast(self, limit: str, missing: float) -> RateLimited:
        return RateLimited(limit, getattr(self._limits, limit), math.ceil(missing))


def caller_of(request: Request) -> str:
    """Who calls, as the access to it knows it; an anonymous one has no bucket but its address's."""
    return getattr(getattr(request, "caller", None), "id", "") or ""


def rate_key(request: Request) -> str:
    """Who has a share of what there is for everybody: the caller, or an anonymous one's address."""
    return caller_of(request) or request.address


class Proxies:
    """Our own, who may say whose requests they hand on."""

    def __init__(self, trusted: tuple[Network, ...] = ()):
        self._trusted = trusted
        self._has_warned = False

    def client_address(self, peer: str, forwarded_for: str) -> str:
        """Whose request it is. Tells the log, once, of a proxy that seems to be ours."""
        if forwarded_for and not self._has_warned and self._seems_forgotten(peer):
            self._has_warned = True
            log.warning(
                "proxy-not-trusted",
                peer=peer,
                detail="all of its clients share one address's rate: FOLDLOG_TRUSTED_PROXIES",
            )
        return client_address(peer, forwarded_for, self._trusted)

    def _seems_forgotten(self, peer: str) -> bool:
        return _is_private(peer) and not is_trusted(peer, self._trusted)


def client_address(peer: str, forwarded_for: str, trusted: tuple[Network, ...]) -> str:
    """Whose request it is: the last one that `X-Forwarded-For` names who is no proxy of ours.

    It is read only if it was a trusted proxy that sent it, and of what it says no more than our
    proxies have added: the beginning anybody may have made up.
    """
    address = peer
    if trusted:
        for told in reversed(forwarded_for.split(",")):
            if not is_trusted(address, trusted) or not told.strip():
                break
            address = told.strip()
    return _network_of(address) or _network_of(peer)


def is_trusted(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return any(found.version == network.version and found in network for network in trusted)


def _is_private(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_private  # or a loopback one


def _network_of(address: str) -> str:
    """What one client has for itself: of IPv6, a prefix. What is no address is nobody's."""
    if ":" not in address and address.count(".") == 3 and address.replace(".", "").isdecimal():
        return address if len(address) <= 15 else ""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if found.version == 6 and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    if found.version == 6:
        return str(IPv6Network((int(found), IPV6_PREFIX_BITS), strict=False))
    return str(found)
