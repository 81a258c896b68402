"""Who may do what: rights, the roles that have them, tokens, and the events that tell of them.

A token is a secret that was shown once; what is kept of it is a digest. It is of one role, in the
spaces that it was granted for. Devices, too, are known by space: one space never learns of another.
Granting, revoking and registering are events of the space's log; a token's secret is in none.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from .errors import DeviceRevoked, Forbidden, InvalidRequest
from .events import Envelope, LogEntry, body_entry, decode_event
from .names import BY_LENGTH_MAX, check_reason, check_text, is_printable, is_space, is_uuid

#: in the place of a space: all of them
EVERY_SPACE = ""

TOKEN_PREFIX = "foldlog_"  # so that whoever scans files for secrets knows one
TOKEN_BYTES = 32
NAME_LENGTH_MAX = 100
#: how much of a caller's id is told in the log, so that there is room for a name beside it
CALLER_LENGTH_MAX = 90

DEVICE_REGISTERED = "device-registered"
DEVICE_REVOKED = "device-revoked"
TOKEN_GRANTED = "token-granted"
TOKEN_REVOKED = "token-revoked"
#: The id of the token that the first start makes: it is always the same, so that of several
#: services that start at once on one database only one grants it.
FIRST_TOKEN = "00000000-0000-4000-8000-000000000001"
#: Round brackets are around who calls, and nowhere else in what is signed.
_NO_ROUND_BRACKETS = str.maketrans("()", "[]")
#: how the bytes of an event begin that takes a right away, after its seq
_REVOKING = (b',"kind":"device-revoked"', b',"kind":"token-revoked"')


class Right(Enum):
    """What an operation needs. Every operation names one."""

    PUBLIC = "public"  #: nobody need say who they are
    READ = "read"  #: what is in a space, and what was
    WRITE = "write"  #: push, as the device that the caller is
    AUDIT = (
        "audit"  #: the whole log with the salts that open it; which devices and tokens there are
    )
    ADMIN = "admin"  #: grant, revoke, define, erase


class Role(Enum):
    """What a token is for. Nobody but a device can write: so the log says whose a change is."""

    DEVICE = "device"
    READER = "reader"
    AUDITOR = "auditor"
    ADMIN = "admin"


RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.DEVICE: frozenset({Right.READ, Right.WRITE}),
    Role.READER: frozenset({Right.READ}),
    Role.AUDITOR: frozenset({Right.READ, Right.AUDIT}),
    Role.ADMIN: frozenset({Right.READ, Right.AUDIT, Right.ADMIN}),
}


class Caller(NamedTuple):
    """Who calls, and what they may do in the space that they named."""

    id: str  #: a stable text, no secret: it is told in logs, and in the events that they cause
    rights: frozenset[Right]
    device: str | None = None  #: the one that they may write as
    is_any_device: bool = False
    is_of_every_space: bool = False
    expires_at: float = float("inf")  #: ms since 1970

    def check(self, right: Right) -> None:
        """Raises `Forbidden`."""
        if right not in self.rights:
            raise Forbidden(f"this needs the right `{right.value}`")

    def check_writes_as(self, device: str) -> None:
        """Raises `Forbidden`."""
        if not self.is_any_device and device != self.device:
            raise Forbidden("this token may not write as this device")

    def attribution(self, by: str | None) -> str | None:
        """Who did something, for the log: who calls, and whom they named.

        Nobody can name somebody who looks like a caller. Raises `InvalidRequest` for what is no
        name.
        """
        check_reason("-", by)
        named = "" if by is None else by.translate(_NO_ROUND_BRACKETS)
        if not self.id:
            return named or None
        # A sign-in's subject may be any text.
        told = (char if is_printable(char) else "?" for char in self.id[:CALLER_LENGTH_MAX])
        caller = "".join(told).translate(_NO_ROUND_BRACKETS)
        return f"{named[: BY_LENGTH_MAX - len(caller) - 3]} ({caller})" if named else caller


def new_token(random: bytes) -> tuple[str, bytes]:
    """A secret to hand out, and what to keep of it, from `TOKEN_BYTES` random bytes."""
    text = TOKEN_PREFIX + urlsafe_b64encode(random).rstrip(b"=").decode()
    return text, digest_of(text)


def digest_of(token: str) -> bytes:
    """What is kept, and looked up by. A plain hash, since nobody guesses 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a new token shall be."""

    role: Role
    device: str | None = None
    name: str | None = None
    expires_at: int | None = None  #: ms since 1970

    def check(self, now_ms: int, by: str | None = None) -> None:
        """Raises `InvalidRequest`, also for who grants it."""
        check_reason("-", by)
        if (self.role is Role.DEVICE) != (self.device is not None):
            raise InvalidRequest("a token of the role `device` names a device, and no other does")
        if self.device is not None:
            check_device(self.device)
        check_name(self.name)
        if self.expires_at is not None and self.expires_at <= now_ms:
            raise InvalidRequest("`expires_at` is over already")


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is listed: all but the secret. Times are ms since 1970."""

    id: str
    space: str
    role: Role
    device: str | None
    name: str | None
    granted_at: int
    granted_by: str | None
    expires_at: int | None
    revoked_at: int | None = None
    revoked_by: str | None = None
    revoked_reason: str | None = None
    is_device_revoked: bool = False  #: in the space that was asked for

    def caller(self) -> Caller:
        """Raises `DeviceRevoked`."""
        if self.is_device_revoked:
            raise DeviceRevoked(f"the device {self.device} was revoked")
        return Caller(
            id=f"token {self.id}",
            rights=RIGHTS[self.role],
            device=self.device,
            is_of_every_space=self.space == EVERY_SPACE,
            expires_at=float("inf") if self.expires_at is None else self.expires_at,
        )

    def is_valid(self, now_ms: int) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now_ms < self.expires_at)


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token of the app's own sign-in says."""

    subject: str
    spaces: frozenset[str]
    rights: frozenset[Right]
    device: str | None
    expires_at: float  #: ms since 1970

    def caller(self) -> Caller:
        return Caller(f"sub {self.subject}", self.rights, self.device, expires_at=self.expires_at)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was registered, or has pushed. Times are ms since 1970."""

    device: str
    counter: int = 0  #: the last that it used up
    name: str | None = None
    registered_at: int | None = None
    last_seen: int | None = None
    revoked_at: int | None = None

    def after(self, told: Device) -> Device:
        """The device as it is after an event that told this of it."""
        return msgspec.structs.replace(
            self,
            name=told.name or self.name,
            registered_at=self.registered_at or told.registered_at,
            revoked_at=self.revoked_at or told.revoked_at,
        )


class DeviceRegistered(msgspec.Struct, omit_defaults=True):
    """The body of an event; the order of these members is the order in the stored bytes."""

    device: str
    name: str | None = None
    by: str | None = None


class DeviceRevokedBody(msgspec.Struct, omit_defaults=True):
    device: str
    reason: str
    by: str | None = None


class TokenGranted(msgspec.Struct, omit_defaults=True):
    token: str
    role: str
    device: str | None = None
    name: str | None = None
    expires_at: str | None = None
    by: str | None = None


class TokenRevoked(msgspec.Struct, omit_defaults=True):
    token: str
    reason: str
    by: str | None = None


KINDS: Mapping[type[msgspec.Struct], str] = {
    DeviceRegistered: DEVICE_REGISTERED,
    DeviceRevokedBody: DEVICE_REVOKED,
    TokenGranted: TOKEN_GRANTED,
    TokenRevoked: TOKEN_REVOKED,
}


def access_entry(envelope: Envelope, body: msgspec.Struct) -> LogEntry:
    """The event that records a change of access."""
    return body_entry(envelope, KINDS[type(body)], body)


def devices_of(entries: Iterable[LogEntry]) -> list[Device]:
    """What these events tell of devices, each by itself; the log has it all.

    Raises `ValueError` for an event that nobody of us wrote.
    """
    return [
        _told_of(entry) for entry in entries if entry.kind in (DEVICE_REGISTERED, DEVICE_REVOKED)
    ]


def _told_of(entry: LogEntry) -> Device:
    body = decode_event(entry.state).body
    if entry.kind == DEVICE_REVOKED:
        gone = msgspec.convert(body, DeviceRevokedBody)
        told = Device(device=gone.device, revoked_at=entry.received_at)
    else:
        new = msgspec.convert(body, DeviceRegistered)
        told = Device(device=new.device, name=new.name, registered_at=entry.received_at)
    if not is_uuid(told.device) or "\0" in (told.name or ""):
        raise ValueError("a device is a UUID in lower case, and its name has no NUL")
    return told


def is_revocation(state: bytes) -> bool:
    """Whether these are the bytes of an event after which somebody may do less."""
    comma = state.find(b",", 0, 30)
    return state.startswith(_REVOKING, comma)


def check_device(device: str) -> None:
    """Raises `InvalidRequest`."""
    if not is_uuid(device):
        raise InvalidRequest("a device is a UUID in lower case")


def check_space(space: str) -> None:
    """Raises `InvalidRequest`."""
    if not is_space(space):
        raise InvalidRequest(f"{space!r} can be no space")


def check_space_or_all(space: str) -> None:
    """Raises `InvalidRequest`."""
    if space != EVERY_SPACE:
        check_space(space)


def check_name(name: str | None) -> None:
    """Raises `InvalidRequest`. It stays in the log for ever, as a reason does."""
    check_text("name", "-" if name is None else name, NAME_LENGTH_MAX)
