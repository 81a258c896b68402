"""Verifies access tokens (JWTs, RFC 7519) that the app's own sign-in service has made.

The keys of the sign-in service (a JWK set, RFC 7517) verify the signature of each token. The claims
`space` (a name or a list of names), `device` and `scope` (RFC 8693: rights, separated by spaces)
define the caller's permissions. The claims `exp`, `sub` and `aud` are required.

The algorithm of the signature is taken from the key and never from the token, because an attacker's
token could name a weak algorithm. If a key has no `alg`, the default algorithm of its key type is
used.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import httpx
import jwt
import structlog

from foldlog.domain.access import Claims, Right
from foldlog.domain.errors import OperatorError, SignInUnavailable, Unauthenticated
from foldlog.domain.names import is_space, is_uuid

log = structlog.get_logger("foldlog.jwts")

ALGORITHMS = frozenset(
    {"EdDSA", *(f"{kind}{bits}" for kind in ("HS", "RS", "PS", "ES") for bits in (256, 384, 512))}
)
#: The tolerated difference between our clock and the clock of the sign-in service.
LEEWAY_SECONDS = 30
#: The keys are read again when they are older than this.
KEYS_SECONDS_MAX = 300.0
#: If a token names an unknown key, the keys are read again when they are older than this.
KEYS_SECONDS_MIN = 10.0
#: If reading fails, the cached keys are used until they are older than this.
STALE_SECONDS_MAX = 3_600.0
FETCH_SECONDS_MAX = 3.0
KEYS_BYTES_MAX = 2**20
#: The default limit of a token's remaining lifetime, because these tokens cannot be revoked.
SECONDS_MAX = 86_400
SECRET_BYTES_MIN = 32  # RFC 7518 section 3.2
SUBJECT_LENGTH_MAX = 200


class SignInKeysUnusable(OperatorError):
    """The keys of the app's sign-in service are unreadable, invalid or too weak."""

    code = "sign-in-keys-unusable"


def parse_keys(text: bytes) -> list[jwt.PyJWK]:
    """Parses a JWK set, and returns a list of the keys in it that can verify signatures.

    Raises `SignInKeysUnusable` if the text is not a JWK set, or if the list would be empty. Raises
    `SignInKeysUnusable` too if the set contains a private key or a shared secret that is too short.
    """
    try:
        keys = json.loads(text)["keys"]
        usable = [key for document in keys if (key := _parsed(document)) is not None]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignInKeysUnusable("the keys of the sign-in are not a JWK set (RFC 7517)") from None
    if not usable:
        raise SignInKeysUnusable("the sign-in's JWK set has no key that can verify signatures")
    if any(key.key_type == "oct" and len(key.key) < SECRET_BYTES_MIN for key in usable):
        raise SignInKeysUnusable(f"a shared secret needs {SECRET_BYTES_MIN} bytes or more")
    return usable


def _parsed(document: Any) -> jwt.PyJWK | None:
    """Parses one key of a JWK set, and returns it as a `PyJWK`.

    Returns `None` if the key cannot verify signatures, for example because its algorithm is
    unknown. Raises `SignInKeysUnusable` if the key is private.
    """
    try:
        if document.get("use", "sig") != "sig":
            return None
        if document.get("kty") != "oct" and "d" in document:
            raise SignInKeysUnusable("the sign-in's JWK set has a private key: give the public one")
        key = jwt.PyJWK.from_dict(document)
    except (jwt.PyJWTError, AttributeError, ValueError, TypeError):
        return None  # an unknown kind of key
    return key if key.algorithm_name in ALGORITHMS else None


class Keys(ABC):
    """Caches the public keys or shared secrets that verify the tokens of the sign-in service.

    When a token is verified, the keys are read again if the last attempt to read them was at least
    `KEYS_SECONDS_MAX` seconds ago. If the token's key is missing in the cache, `KEYS_SECONDS_MIN`
    seconds are enough.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = Lock()
        self._keys: Sequence[jwt.PyJWK] = ()
        self._read_at = float("-inf")
        self._tried_at = float("-inf")

    @abstractmethod
    def _read(self) -> bytes:
        """Reads the JWK set from its file or URL, and returns its text.

        Raises `OSError` if the file cannot be read. Raises `httpx.HTTPError` if the request to the
        URL fails. Raises `SignInKeysUnusable` if the answer is too large or too slow.
        """

    def find(self, kid: str | None) -> jwt.PyJWK | None:
        """Returns the key with the id `kid`, or `None` if the sign-in service has no such key.

        If `kid` is `None` and the set contains exactly one key, this key is returned. If the cached
        keys are old, or if the wanted key is missing, the keys are read again before the search.

        Raises `SignInUnavailable` if the last successful read of the keys was more than
        `STALE_SECONDS_MAX` seconds ago. Raises `SignInUnavailable` too if the wanted key is missing
        while another thread is reading the keys.
        """
        found = _find(self._keys, kid)
        wait = KEYS_SECONDS_MAX if found is not None else KEYS_SECONDS_MIN
        if self._clock() - self._tried_at >= wait:
            self._refresh(wait, is_needed=found is None)
            found = _find(self._keys, kid)
        if self._clock() - self._read_at > STALE_SECONDS_MAX:
            raise SignInUnavailable
        return found

    def _refresh(self, wait: float, is_needed: bool) -> None:
        # During a fetch, other threads use the cached keys. Otherwise, a slow sign-in service or
        # invented key ids would block all threads. All threads wait only for the first fetch.
        """Reads the keys of the sign-in service again, and caches them.

        If the last attempt to read the keys was less than `wait` seconds ago, the method leaves the
        cached keys unchanged. If the read fails, the method logs a warning and keeps the cached
        keys.

        Only one thread at a time reads the keys. During the very first read, the other threads wait
        for the end of the read, at most `FETCH_SECONDS_MAX` seconds. During later reads, the other
        threads return at once and use the cached keys. The caller sets `is_needed` to true if its
        key is missing in the cache. In this case, the other threads raise `SignInUnavailable`
        instead of returning.
        """
        is_first = self._tried_at == float("-inf")
        if not self._lock.acquire(timeout=FETCH_SECONDS_MAX if is_first else 0):
            if is_needed:
                raise SignInUnavailable
            return
        try:
            now = self._clock()
            if now - self._tried_at < wait:
                return  # another thread has just read them
            try:
                self._keys = parse_keys(self._read())
                self._read_at = now
            except (OSError, httpx.HTTPError, SignInKeysUnusable) as exc:
                log.warning("sign-in-keys-unread", error=str(exc))
            self._tried_at = now
        finally:
            self._lock.release()


class FileKeys(Keys):
    """Reads the keys of the sign-in service from a file.

    The constructor raises `SignInKeysUnusable` if the file cannot be read or its content is
    invalid.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._path = path
        try:
            parse_keys(self._read())
        except OSError as exc:
            raise SignInKeysUnusable(f"cannot read {path}: {exc.strerror}") from exc

    def _read(self) -> bytes:
        return self._path.read_bytes()


class UrlKeys(Keys):
    """Fetches the keys of the sign-in service from a URL.

    The class follows no redirects, because only the configured URL is trusted. If the URL answers
    with a redirect, `_read` raises `httpx.HTTPStatusError`.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._url = url

    def _read(self) -> bytes:
        body = b""
        deadline = time.monotonic() + FETCH_SECONDS_MAX
        with httpx.stream("GET", self._url, timeout=FETCH_SECONDS_MAX) as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > KEYS_BYTES_MAX:
                    raise SignInKeysUnusable(
                        f"the sign-in's JWK set is larger than {KEYS_BYTES_MAX} bytes"
                    )
                if time.monotonic() > deadline:
                    raise SignInKeysUnusable("the sign-in answers too slowly")
        return body


def keys_at(location: str) -> Keys:
    """Returns an object that reads the keys of the sign-in service from a URL or a file.

    `location` is the URL or the path of the file. Raises `SignInKeysUnusable` if it is a file that
    cannot be read or has invalid content.
    """
    if location.startswith(("http://", "https://")):
        return UrlKeys(location)
    return FileKeys(Path(location).expanduser())


class Jwts:
    """Verifies tokens of the sign-in service, and returns the permissions in them.

    `prefix` is put before the names of the claims `space` and `device`. A token that expires more
    than `seconds_max` seconds from now is refused; if `seconds_max` is 0, any expiry is allowed.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        audience: str,
        issuer: str | None = None,
        prefix: str = "",
        seconds_max: int = SECONDS_MAX,
    ):
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._prefix = prefix
        self._seconds_max = seconds_max

    def read(self, text: str) -> Claims:
        """Verifies a token, and returns its permissions as `Claims`.

        Raises `Unauthenticated` if the token is invalid. Raises `SignInUnavailable` if the keys of
        the sign-in service are unavailable.
        """
        try:
            key = self._keys.find(jwt.get_unverified_header(text).get("kid"))
            if key is None:
                raise Unauthenticated
            claims = jwt.decode(
                text,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "aud"]},
            )
            return self._claims(claims)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthenticated from None  # details would help an attacker

    def _claims(self, claims: Mapping[str, Any]) -> Claims:
        """Checks the claims of a verified token, and converts them to the caller's permissions.

        If a claim is invalid, this method raises `ValueError`, `TypeError` or `OverflowError`. The
        method `read` catches these errors and raises `Unauthenticated`.
        """
        spaces = claims.get(f"{self._prefix}space", [])
        spaces = [spaces] if isinstance(spaces, str) else spaces
        device = claims.get(f"{self._prefix}device")
        scope, subject = claims.get("scope", ""), claims["sub"]
        seconds_left = claims["exp"] - time.time()
        if self._seconds_max and seconds_left > self._seconds_max + LEEWAY_SECONDS:
            raise ValueError("the token's lifetime is too long")
        if not isinstance(spaces, list):
            raise ValueError("the claim space is neither text nor a list")
        if not all(isinstance(space, str) and is_space(space) for space in spaces):
            raise ValueError("the claim space has an invalid name")
        if device is not None and not (isinstance(device, str) and is_uuid(device)):
            raise ValueError("the claim device is not a UUID")
        if not isinstance(scope, str) or not subject or not subject.isprintable():
            raise ValueError("the claim scope or sub is invalid")
        names = set(scope.split())
        return Claims(
            subject=subject[:SUBJECT_LENGTH_MAX],
            spaces=frozenset(spaces),
            rights=frozenset(right for right in Right if right.value in names),
            device=device,
            expires_at=(claims["exp"] + LEEWAY_SECONDS) * 1000.0,
        )


def _find(keys: Sequence[jwt.PyJWK], kid: str | None) -> jwt.PyJWK | None:
    """Returns the key with the id `kid`, or `None` if `keys` contains no such key.

    A token may omit the id of its key, so `kid` may be `None`. In this case, if `keys` contains
    exactly one key, the function returns this key. Otherwise it returns `None`.
    """
    if kid is None:
        return keys[0] if len(keys) == 1 else None
    return next((key for key in keys if key.key_id == kid), None)
