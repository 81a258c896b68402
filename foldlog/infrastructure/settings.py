"""Settings: read once, together, from the environment and the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from foldlog.domain.errors import OperatorError
from foldlog.domain.limits import FIXED, LIMITS, Limits
from foldlog.domain.names import is_loopback
from foldlog.domain.notes import COSIGNATURE, InvalidNote, Verifier, is_origin_name

LogFormat = Literal["json", "console"]
AccessMode = Literal["tokens", "open"]

DATA = "FOLDLOG_DATA"
DATABASE_URL = "FOLDLOG_DATABASE_URL"
ADMIN_TOKEN = "FOLDLOG_ADMIN_TOKEN"  # noqa: S105
ORIGIN = "FOLDLOG_ORIGIN"
KEYS = "FOLDLOG_KEYS"
ADMIN_TOKEN_LENGTH_MIN = 16
DEFAULT_PORT = 3653  # FOLD on a telephone
#: never told, not even when they cannot be read
SECRET = {DATABASE_URL, ADMIN_TOKEN}

#: as browsers write it (RFC 6454 section 6.2): in lower case, no path; apps have own schemes
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+")


class InvalidSettings(OperatorError):
    """Some settings cannot be used."""

    code = "invalid-settings"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a process of Foldlog is told. Each has an environment variable, see `VARIABLES`."""

    #: the folder of the embedded PostgreSQL; unused when `database_url` is given
    data: Path
    #: any PostgreSQL server; `None` means the embedded one
    database_url: str | None = field(repr=False)
    host: str
    port: int
    #: processes that answer requests
    web_workers: int
    #: processes that follow the logs
    projectors: int
    #: connections of one process to the database
    pool_size_max: int
    log_format: LogFormat
    #: `tokens`: nobody may do anything without one; `open`: everybody on this machine may
    access: AccessMode
    #: a token of an admin of every space, beside those that are granted
    admin_token: str | None = field(repr=False)
    #: a file or a URL of the keys of the app's own sign-in (RFC 7517), if its tokens are taken
    jwt_keys: str | None
    #: whom these tokens must be for, and of whom
    jwt_audience: str | None
    jwt_issuer: str | None
    #: what the names of our claims begin with
    jwt_claims: str
    #: how far away their end may be; 0: any
    jwt_seconds_max: int
    #: whose pages may call us from a browser: exact origins, or `*`
    cors_origins: tuple[str, ...]
    #: what the origins of our checkpoints begin with: a URL without its scheme
    origin: str
    #: the folder of the keys that sign checkpoints, if it is not `keys` in `data`
    keys: Path | None
    #: who is asked to cosign each checkpoint: keys, and the prefixes of their addresses
    witnesses: tuple[tuple[Verifier, str], ...]
    #: of which logs we cosign checkpoints: their keys, named as their origins
    witnessed: tuple[Verifier, ...]
    #: what clients are held to
    limits: Limits
    #: whose word is taken for whose requests they hand on
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]

    def check_open_is_local(self) -> None:
        """Raises `InvalidSettings` if everybody may do all, and not only on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.access == "open" and not is_loopback(host):
            raise InvalidSettings(
                f"access (FOLDLOG_ACCESS) = 'open': not on {self.host}, where others could come in"
            )

    @property
    def keys_folder(self) -> Path:
        return self.keys or self.data / "keys"

    @property
    def checkpoints_folder(self) -> Path:
        """The last checkpoint of each log that was signed: what the signer must not lose."""
        return self.data / "checkpoints"

    @property
    def witness_name(self) -> str:
        """What our cosignatures bear."""
        return f"{self.origin}/witness"

    @property
    def witness_folder(self) -> Path:
        """The last checkpoint of each log that was cosigned."""
        return self.data / "witness"


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000:
        raise ValueError("not between 1 and 1000")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65_536:
        raise ValueError("not a port: 1 to 65535")
    return number


def _log_format(text: str) -> LogFormat:
    if text not in get_args(LogFormat):
        raise ValueError("not json or console")
    return cast(LogFormat, text)


def _database_url(text: str) -> str:
    try:
        conninfo_to_dict(text)
    except ProgrammingError:  # which would quote it, password and all
        raise ValueError("not a URL of PostgreSQL, nor pairs of name=value") from None
    return text


def _cors_origins(text: str) -> tuple[str, ...]:
    origins = tuple(text.split())
    if origins != ("*",) and not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError("not origins as browsers send them: scheme://host, with a port if it is")
    return origins


def _access(text: str) -> AccessMode:
    if text not in get_args(AccessMode):
        raise ValueError(f"not one of {', '.join(get_args(AccessMode))}")
    return cast(AccessMode, text)


def _jwt_keys(text: str) -> str:
    if text.startswith("http://") and not is_loopback(text.partition("://")[2]):
        raise ValueError("keys that come without TLS are anybody's: https://, or a file")
    return text


def _seconds(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("less than 0")
    return number


def _token(text: str) -> str:
    if len(text) < ADMIN_TOKEN_LENGTH_MIN or not text.isascii() or not text.isprintable():
        raise ValueError(f"not {ADMIN_TOKEN_LENGTH_MIN} or more printable characters of ASCII")
    return text


def _origin(text: str) -> str:
    if not is_origin_name(text):
        raise ValueError("not a URL without its scheme: letters, digits and . _ ~ : - between /")
    return text


def _key(text: str) -> Verifier:
    try:
        return Verifier.parse(text)
    except InvalidNote as exc:
        raise ValueError(str(exc)) from exc


def _witnesses(text: str) -> tuple[tuple[Verifier, str], ...]:
    found = []
    for part in text.split():
        vkey, at, url = part.rpartition("@")
        verifier = _key(vkey)
        is_one = at and url.startswith(("http://", "https://"))
        if not is_one or verifier.algorithm != COSIGNATURE:
            raise ValueError("not VKEY@URL, of a witness's key, each after a space")
        found.append((verifier, url.rstrip("/")))
    return tuple(found)


def _witnessed(text: str) -> tuple[Verifier, ...]:
    return tuple(map(_key, text.split()))


def _limits(text: str) -> Limits:
    """`name=value`, each after a space."""
    known = set(Limits.__struct_fields__)
    given = {}
    for part in text.split():
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"there is no limit {name!r}")
        if name in FIXED:
            raise ValueError(f"{name} is fixed by the wire format")
        given[name] = int(value)
        may_be_none = "_per_second_per_" in name or name.endswith(
            ("_per_caller_max", "_per_address_max")
        )
        if given[name] < (0 if may_be_none else 1):
            raise ValueError(f"{name} is a whole number above 0")
    limits = msgspec.structs.replace(LIMITS, **given)
    for name in ("bodies_bytes_max", "bodies_bytes_per_caller_max"):
        if 0 < getattr(limits, name) < limits.inflated_bytes_max:
            raise ValueError(
                f"{name} is less than inflated_bytes_max: such a body could never come"
            )
    return limits


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, text.split()))


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _default_workers() -> str:
    """Half of the cores: PostgreSQL and the projector need the others. One is enough for many
    clients; and a space's appends are quickest where one process makes them all."""
    return str(min(4, max(1, (os.cpu_count() or 1) // 2)))


#: setting -> (variable, default, reader)
VARIABLES: Mapping[str, tuple[str, str | None, Callable[[str], Any]]] = {
    "data": (DATA, "foldlog-data", _folder),
    "database_url": (DATABASE_URL, None, _database_url),
    "host": ("FOLDLOG_HOST", "127.0.0.1", str),
    "port": ("FOLDLOG_PORT", str(DEFAULT_PORT), _port),
    "web_workers": ("FOLDLOG_WEB_WORKERS", _default_workers(), _count),
    "projectors": ("FOLDLOG_PROJECTORS", "1", _count),
    "pool_size_max": ("FOLDLOG_POOL_SIZE_MAX", "16", _count),
    "log_format": ("FOLDLOG_LOG_FORMAT", "json", _log_format),
    "access": ("FOLDLOG_ACCESS", "tokens", _access),
    "admin_token": (ADMIN_TOKEN, None, _token),
    "jwt_keys": ("FOLDLOG_JWT_KEYS", None, _jwt_keys),
    "jwt_audience": ("FOLDLOG_JWT_AUDIENCE", None, str),
    "jwt_issuer": ("FOLDLOG_JWT_ISSUER", None, str),
    "jwt_claims": ("FOLDLOG_JWT_CLAIMS", "", str),
    "jwt_seconds_max": ("FOLDLOG_JWT_SECONDS_MAX", "86400", _seconds),
    "cors_origins": ("FOLDLOG_CORS_ORIGINS", "", _cors_origins),
    "origin": (ORIGIN, "foldlog.local", _origin),
    "keys": (KEYS, None, _folder),
    "witnesses": ("FOLDLOG_WITNESSES", "", _witnesses),
    "witnessed": ("FOLDLOG_WITNESSED", "", _witnessed),
    "limits": ("FOLDLOG_LIMITS", "", _limits),
    "trusted_proxies": ("FOLDLOG_TRUSTED_PROXIES", "", _networks),
}


def read_settings(environ: Mapping[str, str] = os.environ, **given: Any) -> Settings:
    """Settings from the environment; what is `given` and not `None` wins.

    Raises `InvalidSettings` that names every setting that cannot be used, not just the first.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, (variable, default, read) in VARIABLES.items():
        text = given.get(name)
        if text is None:
            text = environ.get(variable) or default
        try:
            values[name] = None if text is None else read(str(text))
        except ValueError as exc:
            told = "..." if variable in SECRET else repr(text)  # no secret in any log
            problems.append(f"{name} ({variable}) = {told}: {exc}")
    if values.get("jwt_keys") and not values.get("jwt_audience"):
        problems.append(
            "jwt_keys (FOLDLOG_JWT_KEYS) needs FOLDLOG_JWT_AUDIENCE: else tokens that the sign-in "
            "made for other services would be taken here, too"
        )
    if values.get("access") == "open" and values.get("cors_origins") == ("*",):
        problems.append(
            "access (FOLDLOG_ACCESS) = 'open': not with FOLDLOG_CORS_ORIGINS = '*', which lets in "
            "every page that somebody visits on this machine"
        )
    if problems:
        raise InvalidSettings("; ".join(problems))
    return Settings(**values)
