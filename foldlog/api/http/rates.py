"""Limits how many requests per second a client may send, and how many streams and downloads it may
have open.

A rate limit is a token bucket. Each request takes one unit from the bucket of the client's IP
address, and then one from the bucket of its caller. Large request bodies and large responses take
more units, according to their size. While one of these buckets is empty, requests get status 429.

Each request with a wrong token also takes one unit from a third bucket, which belongs to the IP
address too. While this bucket is empty, requests from this address are accepted only with tokens
that this process has already found to be valid. This slows down an attacker who guesses tokens, and
other clients behind the same address can continue.

For each bucket, only one number is stored: the time at which the bucket will be full (the generic
cell rate algorithm of ATM). No timers are needed, and the number of stored buckets is limited. Each
process counts only the requests that it receives itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from threading import Lock

import structlog

from foldlog.domain.errors import RateLimited
from foldlog.domain.fairness import Shares
from foldlog.domain.limits import Limits

log = structlog.get_logger("foldlog.api")

#: The path of the liveness check is unlimited. Otherwise many requests from the same address could
#: make the check fail, and the process would be restarted.
UNLIMITED_PATH = b"/healthz"
#: the names of the limits on open streams and downloads
STREAMS, DOWNLOADS = "streams_per_caller_max", "downloads_per_caller_max"
#: The maximum number of stored buckets, which are those below full. When it is reached, the bucket
#: that was used least recently is dropped, and so counts as full again.
BUCKETS_MAX = 100_000
#: Bytes of a response beyond this number are counted like bytes of a request body.
ANSWER_BYTES_FREE = 64 * 2**10
#: A household has many IPv6 addresses, but usually only one network prefix of this length.
IPV6_PREFIX_BITS = 64

Network = IPv4Network | IPv6Network


@dataclass(slots=True)
class RateSubject:
    """Identifies the client whose rate limits a request counts against: the IP address, and the
    caller once the caller is known."""

    #: of the client; empty if unknown
    address: str = ""
    #: the caller's id, once it is known; empty for an anonymous caller
    caller: str = ""
    #: the number of requests that the bytes of this request have counted as, besides itself
    charged: float = 0.0

    @property
    def key(self) -> str:
        """Returns the key under which rate limits, open streams and memory of a client are counted:
        the id of the caller if it is known, otherwise the client's IP address."""
        return self.caller or self.address


class Buckets:
    """Stores one token bucket for each key. A full bucket contains `rate` times `burst_seconds`
    units. Each request takes one unit from the bucket. The bucket gains `rate` units per second
    until it is full again."""

    def __init__(self, rate: int, burst_seconds: int, clock: Callable[[], float]):
        self._seconds_each = 1 / rate
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._full_at: dict[str, float] = {}  # ordered by last use
        self._lock = Lock()

    def take(self, key: str) -> float:
        """Takes one unit from the bucket of `key` and returns 0.

        If the bucket contains less than one unit, the method leaves the bucket unchanged. It then
        returns the seconds until the bucket contains one unit.
        """
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.pop(key, now), now) + self._seconds_each
            missing = full_at - now - self._burst_seconds
            if missing > 0:
                full_at -= self._seconds_each
            self._keep(key, full_at)
        return max(0.0, missing)

    def missing(self, key: str) -> float:
        """Returns the seconds until the bucket of `key` contains at least one unit, or 0 if it
        contains one now. The method leaves the bucket unchanged."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(key, now), now) + self._seconds_each
        return max(0.0, full_at - now - self._burst_seconds)

    def charge(self, key: str, count: float, own: float = 0) -> float:
        """Takes `count` units from the bucket of `key`, even if the bucket contains fewer units.

        A bucket from which too many units were taken is in debt. New requests are then refused
        until the bucket has gained enough units. The debt is limited to the units of one full
        bucket, because several clients may share a key.

        Returns 0 if the bucket had no debt before this call. Otherwise returns the seconds in which
        the bucket gains the units of that debt. `own` is the number of units that the current
        request has already taken: they are left out of that debt.
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
    """Allows a client to have one more stream or download open, until the lease is closed or
    deleted.

    Closing a lease a second time has no effect.
    """

    def __init__(self, release: Callable[[], None] = lambda: None):
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Returns a context manager that closes the lease if its `with` block raises an exception.

        Use it because the traceback of the exception keeps a reference to the lease. The lease
        would otherwise stay open until the next garbage collection.
        """
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
        self.close()  # for a response whose sending has never started


class Rates:
    """Defines the checks of rate limits. This class allows every request; the subclass
    `LimitedRates` enforces the limits."""

    def check_address(self, subject: RateSubject) -> None:
        """Counts one request against the rate limit of the client's IP address. Raises
        `RateLimited` if the limit is used up."""

    def check_caller(self, subject: RateSubject) -> None:
        """Counts one request against the rate limit of the caller. Raises `RateLimited` if the
        limit is used up."""

    def count_body(self, subject: RateSubject, size: int) -> None:
        """Counts `size` more bytes of a decompressed request body against the rate limits of the
        client.

        A large body counts as several requests. Raises `RateLimited` if the body is large and other
        requests of the client have used up a rate limit.
        """

    def check_waited(self, subject: RateSubject) -> None:
        """Checks the rate limits of the client again after the request has waited for a thread. The
        request itself is not counted again.

        Raises `RateLimited` if other requests of the client have used up a rate limit.
        """

    def count_answer(self, subject: RateSubject, size: int) -> None:
        """Counts the size of a response against the rate limits of the client. The first
        `ANSWER_BYTES_FREE` bytes are free.

        Large responses count because they stay in memory until the client has read them. This
        response is sent in any case; only later requests of the client may be refused.
        """
        if size > ANSWER_BYTES_FREE:
            with suppress(RateLimited):
                self.count_body(subject, size - ANSWER_BYTES_FREE)

    def check_unknown_caller(self, subject: RateSubject) -> None:
        """Checks that the client's IP address has not sent too many wrong tokens. Call it before
        you check a token that is missing in the cache of valid tokens.

        Raises `RateLimited` if the address has sent too many wrong tokens.
        """

    def count_wrong_token(self, subject: RateSubject) -> None: ...

    def hold(self, subject: RateSubject, limit: str = STREAMS) -> Lease:
        """Returns a lease that allows the client one more open stream or download. `limit` is the
        name of the limit: `STREAMS` or `DOWNLOADS`.

        Raises `RateLimited` if the client already has the maximum number open.
        """
        return Lease()


NO_RATES = Rates()


class LimitedRates(Rates):
    """Enforces the rate limits that `limits` defines. A rate of 0 means that there is no limit."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._callers = self._buckets(limits.requests_per_second_per_caller, clock)
        self._addresses = self._buckets(limits.requests_per_second_per_address, clock)
        self._wrong_tokens = self._buckets(limits.wrong_tokens_per_second_per_address, clock)
        self._open = {
            STREAMS: Shares(share=limits.streams_per_caller_max),
            DOWNLOADS: Shares(share=limits.downloads_per_caller_max),
        }
        # A lease may be closed by any thread, the garbage collector's too.
        self._lock = Lock()

    def _buckets(self, rate: int, clock: Callable[[], float]) -> Buckets | None:
        return Buckets(rate, self._limits.burst_seconds, clock) if rate else None

    def check_address(self, subject: RateSubject) -> None:
        if self._addresses is not None and subject.address:
            missing = self._addresses.take(subject.address)
            if missing:
                raise self._too_fast("requests_per_second_per_address", missing)

    def check_caller(self, subject: RateSubject) -> None:
        if self._callers is not None and subject.caller:
            missing = self._callers.take(subject.caller)
            if missing:
                raise self._too_fast("requests_per_second_per_caller", missing)

    def count_body(self, subject: RateSubject, size: int) -> None:
        count = size / self._limits.bytes_per_request_counted
        self._charge(subject, count, refuses=subject.charged + count > 1)

    def check_waited(self, subject: RateSubject) -> None:
        self._charge(subject, 0, refuses=True)

    def _charge(self, subject: RateSubject, count: float, *, refuses: bool) -> None:
        # The bytes of the request itself are left out of the check. Otherwise a body larger than a
        # full bucket would always be refused.
        own = 1 + subject.charged
        subject.charged += count
        if self._addresses is not None and subject.address:
            missing = self._addresses.charge(subject.address, count, own)
            if missing and refuses:
                raise self._too_fast("requests_per_second_per_address", missing)
        if self._callers is not None and subject.caller:
            missing = self._callers.charge(subject.caller, count, own)
            if missing and refuses:
                raise self._too_fast("requests_per_second_per_caller", missing)

    def check_unknown_caller(self, subject: RateSubject) -> None:
        if self._wrong_tokens is not None and subject.address:
            missing = self._wrong_tokens.missing(subject.address)
            if missing:
                raise self._too_fast("wrong_tokens_per_second_per_address", missing)

    def count_wrong_token(self, subject: RateSubject) -> None:
        if self._wrong_tokens is not None and subject.address:
            self._wrong_tokens.charge(subject.address, 1)

    def hold(self, subject: RateSubject, limit: str = STREAMS) -> Lease:
        shares, key = self._open[limit], subject.key
        if not shares.share or not key:
            return Lease()
        with self._lock:
            if shares.take(key) is not None:
                raise RateLimited(limit, shares.share, retry_after_seconds=30)
        return Lease(lambda: self._release(shares, key))

    def _release(self, shares: Shares, key: str) -> None:
        with self._lock:
            shares.release(key)

    def _too_fast(self, limit: str, missing: float) -> RateLimited:
        return RateLimited(limit, getattr(self._limits, limit), math.ceil(missing))


class Proxies:
    """Finds the IP address of the client of a request. It reads the `X-Forwarded-For` header only
    if the request comes from a trusted proxy."""

    def __init__(self, trusted: tuple[Network, ...] = ()):
        self._trusted = trusted
        self._has_warned = False

    def client_address(self, peer: str, forwarded_for: str) -> str:
        """Returns the IP address of the client. `peer` is the address from which the connection
        comes, and `forwarded_for` is the value of the `X-Forwarded-For` header.

        If a request with this header comes from a private address that is missing in the list of
        trusted proxies, the method logs a warning, once.
        """
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
    """Returns the IP address of the client: the last address in `X-Forwarded-For` that belongs to
    no trusted proxy.

    The header is used only if `peer`, the other end of the connection, is a trusted proxy. The
    header is read from its end, and only as far as the addresses are those of trusted proxies,
    because the client can invent the addresses at the beginning. For a client with IPv6, the result
    is its /64 network.
    """
    address = peer
    if trusted:
        for forwarded in reversed(forwarded_for.split(",")):
            if not is_trusted(address, trusted) or not forwarded.strip():
                break
            address = forwarded.strip()
    return _network_of(address) or _network_of(peer)


def is_trusted(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return any(found.version == network.version and found in network for network in trusted)


def _is_private(address: str) -> bool:
    """Returns whether an address is private or loopback."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_private


def _network_of(address: str) -> str:
    """Returns the text by which rate limits identify a client: for IPv4 its address, and for IPv6
    the /64 network of its address.

    Returns an empty text if `address` is invalid.
    """
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
