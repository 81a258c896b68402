"""Verifies the tokens of an app's own sign-in: JWTs (RFC 7519), with the sign-in's keys (RFC 7517).

The claims `space` (a name or a list), `device` and `scope` (RFC 8693: rights, separated by spaces)
define the caller's permissions. `exp`, `sub` and `aud` are required. The key decides the algorithm,
because a token could choose a weak one. A JWK that lacks `alg` uses the default of its key type.
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
#: Tolerated difference between the clocks of two machines.
LEEWAY_SECONDS = 30
#: The file or URL of the keys is read again after this time,
KEYS_SECONDS_MAX = 300.0
#: or, for a token with an unknown key, after this time.
KEYS_SECONDS_MIN = 10.0
#: While the file or URL fails, the cached keys stay valid for this long.
STALE_SECONDS_MAX = 3_600.0
FETCH_SECONDS_MAX = 3.0
KEYS_BYTES_MAX = 2**20
#: The default limit of a token's remaining lifetime, because these tokens cannot be revoked.
SECONDS_MAX = 86_400
SECRET_BYTES_MIN = 32  # RFC 7518 section 3.2
SUBJECT_LENGTH_MAX = 200


class SignInKeysUnusable(OperatorError):
    """The keys of the app's sign-in cannot be used."""

    code = "sign-in-keys-unusable"


def parse_keys(text: bytes) -> list[jwt.PyJWK]:
    """Returns the signature keys of a JWK set, and ignores keys of other kinds.

    Raises `SignInKeysUnusable` for invalid JSON, a private key, a short secret, or an empty result.
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
    """The cached keys of a sign-in; they are read again when they are old or a key is missing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = Lock()
        self._keys: Sequence[jwt.PyJWK] = ()
        self._read_at = float("-inf")
        self._tried_at = float("-inf")

    @abstractmethod
    def _read(self) -> bytes:
        """Returns the JWK set. Raises `OSError`, `httpx.HTTPError` or `SignInKeysUnusable`."""

    def find(self, kid: str | None) -> jwt.PyJWK | None:
        """Returns the key with this id; the only key if `kid` is None. Reads the keys if needed.

        Raises `SignInUnavailable` if the keys are too old, or being read for the first time.
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
        # During a fetch, other threads use the cached keys, because a slow sign-in or invented key
        # ids would block all threads. All threads wait only for the first fetch.
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
    """Keys in a file. The constructor raises `SignInKeysUnusable` if it cannot read them."""

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
    """Keys at a URL. Redirects are refused, because only this URL is trusted."""

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
    """Returns the keys in a file or at a URL. Raises `SignInKeysUnusable`."""
    if location.startswith(("http://", "https://")):
        return UrlKeys(location)
    return FileKeys(Path(location).expanduser())


class Jwts:
    """Verifies tokens. `prefix` precedes the names of the claims `space` and `device`.

    A token whose remaining lifetime is over `seconds_max` is refused; 0 allows any lifetime.
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
        """Returns the claims. Raises `Unauthenticated` or `SignInUnavailable`."""
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
        """Raises `ValueError`, `TypeError` or `OverflowError`."""
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
    if kid is None:
        return keys[0] if len(keys) == 1 else None
    return next((key for key in keys if key.key_id == kid), None)
