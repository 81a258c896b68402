"""Tokens of an app's own sign-in: JWTs (RFC 7519), checked with its keys (RFC 7517).

The claims `space` (one, or a list), `device` and `scope` (RFC 8693: rights, with spaces between)
say what the caller may do; `exp`, `sub` and `aud` must be there. An algorithm is its key's, never
the token's to choose: a JWK without `alg` is used with the usual one of its kind.
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
#: clocks of two machines
LEEWAY_SECONDS = 30
#: a file, or a URL, is looked at again after so long
KEYS_SECONDS_MAX = 300.0
#: ... and for a key that is unknown, but not more often
KEYS_SECONDS_MIN = 10.0
#: keys that cannot be had again are trusted for so long
STALE_SECONDS_MAX = 3_600.0
FETCH_SECONDS_MAX = 3.0
KEYS_BYTES_MAX = 2**20
#: until a token ends: nobody can revoke it before
SECONDS_MAX = 86_400
SECRET_BYTES_MIN = 32  # RFC 7518 section 3.2
SUBJECT_LENGTH_MAX = 200


class SignInKeysUnusable(OperatorError):
    """What shall be the keys of the app's sign-in is none."""

    code = "sign-in-keys-unusable"


def parse_keys(text: bytes) -> list[jwt.PyJWK]:
    """The keys for signatures of a JWK set; those of other kinds are passed over.

    Raises `SignInKeysUnusable`.
    """
    try:
        keys = json.loads(text)["keys"]
        usable = [key for document in keys if (key := _parsed(document)) is not None]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignInKeysUnusable("the keys of the sign-in are no JWK set (RFC 7517)") from None
    if not usable:
        raise SignInKeysUnusable("no key of the sign-in is one that signatures are checked by")
    if any(key.key_type == "oct" and len(key.key) < SECRET_BYTES_MIN for key in usable):
        raise SignInKeysUnusable(f"a shared secret has {SECRET_BYTES_MIN} bytes or more")
    return usable


def _parsed(document: Any) -> jwt.PyJWK | None:
    try:
        if document.get("use", "sig") != "sig":
            return None
        if document.get("kty") != "oct" and "d" in document:
            raise SignInKeysUnusable("a private key among the keys of the sign-in: give its public")
        key = jwt.PyJWK.from_dict(document)
    except (jwt.PyJWTError, AttributeError, ValueError, TypeError):
        return None  # not of a kind that we know
    return key if key.algorithm_name in ALGORITHMS else None


class Keys(ABC):
    """The keys of a sign-in: remembered, and read again when they are old or one is missing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = Lock()
        self._keys: Sequence[jwt.PyJWK] = ()
        self._read_at = float("-inf")
        self._tried_at = float("-inf")

    @abstractmethod
    def _read(self) -> bytes:
        """Raises `OSError`, `httpx.HTTPError` or `SignInKeysUnusable`."""

    def find(self, kid: str | None) -> jwt.PyJWK | None:
        """The key of this id, or the only one. Raises `SignInUnavailable`."""
        found = _find(self._keys, kid)
        wait = KEYS_SECONDS_MAX if found is not None else KEYS_SECONDS_MIN
        if self._clock() - self._tried_at >= wait:
            self._refresh(wait, is_needed=found is None)
            found = _find(self._keys, kid)
        if self._clock() - self._read_at > STALE_SECONDS_MAX:
            raise SignInUnavailable
        return found

    def _refresh(self, wait: float, is_needed: bool) -> None:
        # While one fetches, the others go on with what is at hand: a sign-in that is slow, or
        # ids of keys that somebody made up, shall not hold all threads. Only the first fetch is
        # waited for by all.
        is_first = self._tried_at == float("-inf")
        if not self._lock.acquire(timeout=FETCH_SECONDS_MAX if is_first else 0):
            if is_needed:
                raise SignInUnavailable
            return
        try:
            now = self._clock()
            if now - self._tried_at < wait:
                return  # another has just done it
            try:
                self._keys = parse_keys(self._read())
                self._read_at = now
            except (OSError, httpx.HTTPError, SignInKeysUnusable) as exc:
                log.warning("sign-in-keys-unread", error=str(exc))
            self._tried_at = now
        finally:
            self._lock.release()


class FileKeys(Keys):
    """Keys of a file. Raises `SignInKeysUnusable` if there are none at the beginning."""

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
    """Keys that are fetched. A redirection is not followed: the URL is whom we trust."""

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
                    raise SignInKeysUnusable("the keys of the sign-in are too long")
                if time.monotonic() > deadline:
                    raise SignInKeysUnusable("the sign-in answers too slowly")
        return body


def keys_at(place: str) -> Keys:
    """Those of a file, or of a URL."""
    if place.startswith(("http://", "https://")):
        return UrlKeys(place)
    return FileKeys(Path(place).expanduser())


class Jwts:
    """Reads tokens. `prefix` is what the names of the claims `space` and `device` begin with.

    None is taken that ends later than after `seconds_max`, if that is not 0.
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
        """Raises `Unauthenticated` for what is not valid, and `SignInUnavailable`."""
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
            raise Unauthenticated from None  # what is wrong with it is told to nobody

    def _claims(self, claims: Mapping[str, Any]) -> Claims:
        """Raises `ValueError`, `TypeError` or `OverflowError`."""
        spaces = claims.get(f"{self._prefix}space", [])
        spaces = [spaces] if isinstance(spaces, str) else spaces
        device = claims.get(f"{self._prefix}device")
        scope, subject = claims.get("scope", ""), claims["sub"]
        seconds_left = claims["exp"] - time.time()
        if self._seconds_max and seconds_left > self._seconds_max + LEEWAY_SECONDS:
            raise ValueError("an end that is too far away")
        if not isinstance(spaces, list):
            raise ValueError("neither a space nor a list of some")
        if not all(isinstance(space, str) and is_space(space) for space in spaces):
            raise ValueError("a space that can be none")
        if device is not None and not (isinstance(device, str) and is_uuid(device)):
            raise ValueError("a device that can be none")
        if not isinstance(scope, str) or not subject or not subject.isprintable():
            raise ValueError("a scope or a subject that can be none")
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
