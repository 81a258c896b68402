"""Reads all settings from environment variables and the command line, and checks them.

Each process reads its settings once, when it starts.
"""

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
#: A smaller limit would stop workers that do their usual work.
WEB_MEMORY_BYTES_MIN = 256 * 2**20
#: Error messages hide the values of these variables.
SECRET = {DATABASE_URL, ADMIN_TOKEN}

#: An origin as browsers send it (RFC 6454 section 6.2): lower case, without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+")


class InvalidSettings(OperatorError):
    """One or more settings are invalid. The error message names all invalid settings."""

    code = "invalid-settings"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process.

    The constant `VARIABLES` defines from which environment variable each setting is read.
    """

    #: folder of the embedded PostgreSQL, the keys and the checkpoints
    data: Path
    #: URL of a PostgreSQL server; `None` selects the embedded one
    database_url: str | None = field(repr=False)
    host: str
    port: int
    #: number of processes that answer requests
    web_workers: int
    #: limit of the memory of one web worker; 0 means no limit
    web_memory_bytes_max: int
    #: number of processes that update the projections
    projectors: int
    #: database connections of one process
    pool_size_max: int
    log_format: LogFormat
    #: `tokens`: every request needs a token; `open`: every user of this machine has access
    access: AccessMode
    #: an admin token for every space, in addition to the granted tokens
    admin_token: str | None = field(repr=False)
    #: file or URL of the JWK set (RFC 7517) of the app's own sign-in
    jwt_keys: str | None
    #: required `aud` and `iss` of the sign-in's tokens
    jwt_audience: str | None
    jwt_issuer: str | None
    #: prefix of the names of our claims
    jwt_claims: str
    #: limit of a token's remaining lifetime; 0 allows any
    jwt_seconds_max: int
    #: origins of the web pages that may call the service from a browser, or `*`
    cors_origins: tuple[str, ...]
    #: prefix of the origins of our checkpoints: a URL without its scheme
    origin: str
    #: folder of the keys that sign checkpoints; `None` selects `keys` in `data`
    keys: Path | None
    #: witnesses that cosign our checkpoints: the key and the URL prefix of each
    witnesses: tuple[tuple[Verifier, str], ...]
    #: logs whose checkpoints we cosign: their keys, named by origin
    witnessed: tuple[Verifier, ...]
    #: limits for clients
    limits: Limits
    #: networks of the proxies whose forwarding headers are trusted
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]

    def check_open_is_local(self) -> None:
        """Raises `InvalidSettings` if other machines can reach the service without a token.

        Requests need no token if the setting `access` is `open`. Other machines can reach the
        service if `host` differs from the loopback addresses, such as 127.0.0.1.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.access == "open" and not is_loopback(host):
            raise InvalidSettings(
                f"access (FOLDLOG_ACCESS) = 'open': other machines can reach {self.host}; "
                "listen on 127.0.0.1, or use tokens"
            )

    @property
    def keys_folder(self) -> Path:
        """The folder that contains the keys for signing checkpoints."""
        return self.keys or self.data / "keys"

    @property
    def checkpoints_folder(self) -> Path:
        """The folder that contains, for each log, a file with its last signed checkpoint.

        Before the signer signs a new checkpoint of a log, it compares the checkpoint with this
        file.
        """
        return self.data / "checkpoints"

    @property
    def witness_name(self) -> str:
        """The name of the key with which this service cosigns the checkpoints of other services."""
        return f"{self.origin}/witness"

    @property
    def witness_folder(self) -> Path:
        """The folder in which this service, as a witness, saves checkpoints of other services.

        For each log of another service, the folder contains the last checkpoint that this service
        has cosigned.
        """
        return self.data / "witness"


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000:
        raise ValueError("must be 1 to 1000")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65_536:
        raise ValueError("must be a port, 1 to 65535")
    return number


def _log_format(text: str) -> LogFormat:
    if text not in get_args(LogFormat):
        raise ValueError("must be json or console")
    return cast(LogFormat, text)


def _database_url(text: str) -> str:
    try:
        conninfo_to_dict(text)
    except ProgrammingError:  # its text would quote the password
        raise ValueError("must be a PostgreSQL URL, or pairs of name=value") from None
    return text


def _cors_origins(text: str) -> tuple[str, ...]:
    origins = tuple(text.split())
    if origins != ("*",) and not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError("must be * or origins as browsers send them: scheme://host or with :port")
    return origins


def _access(text: str) -> AccessMode:
    if text not in get_args(AccessMode):
        raise ValueError(f"must be one of {', '.join(get_args(AccessMode))}")
    return cast(AccessMode, text)


def _jwt_keys(text: str) -> str:
    if text.startswith("http://") and not is_loopback(text.partition("://")[2]):
        raise ValueError("keys over plain HTTP can be forged: use https:// or a file")
    return text


def _seconds(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def _token(text: str) -> str:
    if len(text) < ADMIN_TOKEN_LENGTH_MIN or not text.isascii() or not text.isprintable():
        raise ValueError(f"must be {ADMIN_TOKEN_LENGTH_MIN} or more printable ASCII characters")
    return text


def _origin(text: str) -> str:
    if not is_origin_name(text):
        raise ValueError(
            "must be a URL without its scheme: letters, digits and . _ ~ : - between /"
        )
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
            raise ValueError("must be VKEY@URL with a witness's key; separate several by spaces")
        found.append((verifier, url.rstrip("/")))
    return tuple(found)


def _witnessed(text: str) -> tuple[Verifier, ...]:
    return tuple(map(_key, text.split()))


def _limits(text: str) -> Limits:
    """Parses pairs `name=value`, separated by spaces, and returns the `Limits` with these values.

    A limit that the text omits keeps its default. Raises `ValueError` if a name is unknown, if the
    limit is fixed, or if a value is invalid.
    """
    known = set(Limits.__struct_fields__)
    given = {}
    for part in text.split():
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"there is no limit {name!r}")
        if name in FIXED:
            raise ValueError(f"{name} is fixed by the wire format")
        given[name] = int(value)
        may_be_zero = "_per_second_per_" in name or name.endswith(
            ("_per_caller_max", "_per_address_max")
        )
        if given[name] < (0 if may_be_zero else 1):
            raise ValueError(f"{name} must be a whole number above 0")
    limits = msgspec.structs.replace(LIMITS, **given)
    for name in ("bodies_bytes_max", "bodies_bytes_per_caller_max"):
        if 0 < getattr(limits, name) < limits.inflated_bytes_max:
            raise ValueError(
                f"{name} is less than inflated_bytes_max, so the largest body could never be read"
            )
    return limits


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, text.split()))


def _memory(text: str) -> int:
    found = int(text)
    if found != 0 and found < WEB_MEMORY_BYTES_MIN:
        raise ValueError(f"must be 0, which means no limit, or at least {WEB_MEMORY_BYTES_MIN}")
    return found


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _default_workers() -> str:
    """Returns the default number of web workers: half of the CPU cores, at least 1, at most 4.

    The other cores are for PostgreSQL and the projector. Few workers are enough, because one worker
    can serve many clients. Appends to one space are fastest if they all come from the same process.
    """
    return str(min(4, max(1, (os.cpu_count() or 1) // 2)))


#: setting -> (variable, default, reader)
VARIABLES: Mapping[str, tuple[str, str | None, Callable[[str], Any]]] = {
    "data": (DATA, "foldlog-data", _folder),
    "database_url": (DATABASE_URL, None, _database_url),
    "host": ("FOLDLOG_HOST", "127.0.0.1", str),
    "port": ("FOLDLOG_PORT", str(DEFAULT_PORT), _port),
    "web_workers": ("FOLDLOG_WEB_WORKERS", _default_workers(), _count),
    "web_memory_bytes_max": ("FOLDLOG_WEB_MEMORY_BYTES_MAX", str(2 * 2**30), _memory),
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
    """Reads all settings from environment variables, checks them, and returns them.

    `given` contains the settings of the command line; each one overrides the environment variable
    of the same setting. Raises `InvalidSettings` if any setting is invalid. The error message names
    all invalid settings.
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
            shown = "..." if variable in SECRET else repr(text)
            problems.append(f"{name} ({variable}) = {shown}: {exc}")
    if values.get("jwt_keys") and not values.get("jwt_audience"):
        problems.append(
            "jwt_keys (FOLDLOG_JWT_KEYS) needs FOLDLOG_JWT_AUDIENCE: without it, the service would "
            "accept tokens that the sign-in made for other services"
        )
    if values.get("access") == "open" and values.get("cors_origins") == ("*",):
        problems.append(
            "access (FOLDLOG_ACCESS) = 'open' with FOLDLOG_CORS_ORIGINS = '*' would give every web "
            "page in a browser on this machine access: name the origins, or use tokens"
        )
    if problems:
        raise InvalidSettings("; ".join(problems))
    return Settings(**values)
