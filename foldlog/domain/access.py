"""Defines the access control: rights, roles, tokens, devices, and the events that record changes of
tokens and devices.

The service shows the secret of a token once and stores only the SHA-256 digest of the secret. A
token has one role, which is valid in the spaces that the token was granted for. A device is
registered and revoked in each space separately. Each grant, revocation and registration is an event
in the log of the space. Secrets are left out of these events; a grant has the digest, so that an
auditor can see whether the stored digest is the one that was granted.
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

#: in the place of a space's name: all spaces
EVERY_SPACE = ""

TOKEN_PREFIX = "foldlog_"  # lets secret scanners recognize a token
TOKEN_BYTES = 32
NAME_LENGTH_MAX = 100
#: the part of a caller's id that the log keeps; leaves room for a name before it
CALLER_LENGTH_MAX = 90

DEVICE_REGISTERED = "device-registered"
DEVICE_REVOKED = "device-revoked"
TOKEN_GRANTED = "token-granted"
TOKEN_REVOKED = "token-revoked"
#: The id of the token that the first start creates. Because the id is fixed, only one of several
#: services that start at once on a database grants it.
FIRST_TOKEN = "00000000-0000-4000-8000-000000000001"
#: Round brackets surround the caller's id only; in a given name they become square ones.
_NO_ROUND_BRACKETS = str.maketrans("()", "[]")
#: how the bytes of a revocation continue after the seq
_REVOKING = (b',"kind":"device-revoked"', b',"kind":"token-revoked"')


class Right(Enum):
    """A permission. Each operation of the API requires exactly one of these rights."""

    PUBLIC = "public"  #: open to every caller
    READ = "read"  #: the current data of a space, and its history
    WRITE = "write"  #: push as the caller's own device
    AUDIT = (
        "audit"  #: the whole log with the salts of the commitments; the lists of devices and tokens
    )
    ADMIN = "admin"  #: grant, revoke, define, erase


class Role(Enum):
    """The role of a token. The role decides the rights of the token.

    Only a token with the role `device` can write, because each change in the log must have a device
    as its author.
    """

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
    """The sender of a request, with the rights that the sender has in the space of the request."""

    id: str  #: stable and public: it appears in logs and in the caused events
    rights: frozenset[Right]
    device: str | None = None  #: the device that the caller may write as
    is_any_device: bool = False
    is_of_every_space: bool = False
    expires_at: float = float("inf")  #: ms since 1970

    def check(self, right: Right) -> None:
        """Raises `Forbidden` if the caller lacks this right."""
        if right not in self.rights:
            raise Forbidden(f"this needs the right `{right.value}`")

    def check_writes_as(self, device: str) -> None:
        """Raises `Forbidden` if the caller may not push changesets of this device. A caller may
        push the changesets of its own device. A caller with `is_any_device` may push those of all
        devices."""
        if not self.is_any_device and device != self.device:
            raise Forbidden("this token may not write as this device")

    def attribution(self, by: str | None) -> str | None:
        """Returns the text with which the log names the author of an action. `by` is the author's
        name from the request.

        The text is the name followed by the caller's id in round brackets, for example `Ann (token
        7)`. If `by` is `None`, the text is only the id. Round brackets inside the name become
        square brackets, because a name must not imitate the id of a caller. Raises `InvalidRequest`
        if `by` is empty, too long or unprintable.
        """
        check_reason("-", by)
        named = "" if by is None else by.translate(_NO_ROUND_BRACKETS)
        if not self.id:
            return named or None
        # The subject of a sign-in can hold unprintable characters.
        shown = (char if is_printable(char) else "?" for char in self.id[:CALLER_LENGTH_MAX])
        caller = "".join(shown).translate(_NO_ROUND_BRACKETS)
        return f"{named[: BY_LENGTH_MAX - len(caller) - 3]} ({caller})" if named else caller


def new_token(random: bytes) -> tuple[str, bytes]:
    """Makes a token from `TOKEN_BYTES` random bytes. Returns the secret text for the holder of the
    token, and the digest that the service stores."""
    text = TOKEN_PREFIX + urlsafe_b64encode(random).rstrip(b"=").decode()
    return text, digest_of(text)


def digest_of(token: str) -> bytes:
    """Returns the SHA-256 digest of a token. The service stores only this digest, and finds a token
    by its digest.

    A plain hash is enough, because a token has 256 random bits, which are impossible to guess.
    """
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A token that an admin wants to grant: its role, device, name and time of expiry."""

    role: Role
    device: str | None = None
    name: str | None = None
    expires_at: int | None = None  #: ms since 1970

    def check(self, now_ms: int, by: str | None = None) -> None:
        """Raises `InvalidRequest` if a member of this grant is invalid, or if `expires_at` is in
        the past. Also raises `InvalidRequest` if `by`, the name of the person who grants the token,
        is invalid."""
        check_reason("-", by)
        if (self.role is Role.DEVICE) != (self.device is not None):
            raise InvalidRequest(
                "only a token of the role `device` names a device, and it must name one"
            )
        if self.device is not None:
            check_device(self.device)
        check_name(self.name)
        if self.expires_at is not None and self.expires_at <= now_ms:
            raise InvalidRequest("`expires_at` is in the past")


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A granted token, without its secret: its space, role and device, and when it was granted and
    revoked. Lists of tokens contain this class. All times are in ms since 1970."""

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
    is_device_revoked: bool = False  #: in the space of the query

    def caller(self) -> Caller:
        """Returns the caller that this token identifies. Raises `DeviceRevoked` if the device of
        the token was revoked."""
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
    """The contents of a token (a JWT) that the app's own sign-in issued: the user, the user's
    spaces, rights and device, and the time of expiry."""

    subject: str
    spaces: frozenset[str]
    rights: frozenset[Right]
    device: str | None
    expires_at: float  #: ms since 1970

    def caller(self) -> Caller:
        return Caller(f"sub {self.subject}", self.rights, self.device, expires_at=self.expires_at)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was registered in a space, was revoked in it, or has pushed changesets to it.
    All times are in ms since 1970."""

    device: str
    counter: int = 0  #: of its last changeset
    name: str | None = None
    registered_at: int | None = None
    last_seen: int | None = None
    revoked_at: int | None = None

    def after(self, update: Device) -> Device:
        """Returns a copy of this device with the changes that one event makes. `update` contains
        only the values that the event sets. If the device already has a time of registration or
        revocation, that time is kept."""
        return msgspec.structs.replace(
            self,
            name=update.name or self.name,
            registered_at=self.registered_at or update.registered_at,
            revoked_at=self.revoked_at or update.revoked_at,
        )


class DeviceRegistered(msgspec.Struct, omit_defaults=True):
    """The body of a `device-registered` event. The members are stored in the order of this class,
    so this order must never change. The same rule applies to `DeviceRevokedBody`, `TokenGranted`
    and `TokenRevoked`."""

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
    #: the SHA-256 digest of the secret, in hex; missing in events of older versions
    digest: str | None = None


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
    """Makes the log entry of an event that records a grant, a registration or a revocation. The
    class of `body` decides the kind of the event."""
    return body_entry(envelope, KINDS[type(body)], body)


def devices_of(entries: Iterable[LogEntry]) -> list[Device]:
    """Returns a list with one `Device` for each log entry that records the registration or the
    revocation of a device, in order. Entries of other kinds are skipped.

    Each `Device` contains only the values from its own event, such as `revoked_at`; its other
    members have their defaults. To combine two of them, use `Device.after`.

    Raises `ValueError` if the body of a registration or revocation is invalid. The event is then
    forged or damaged.
    """
    return [
        _device_update(entry)
        for entry in entries
        if entry.kind in (DEVICE_REGISTERED, DEVICE_REVOKED)
    ]


def _device_update(entry: LogEntry) -> Device:
    body = decode_event(entry.state).body
    if entry.kind == DEVICE_REVOKED:
        gone = msgspec.convert(body, DeviceRevokedBody)
        update = Device(device=gone.device, revoked_at=entry.received_at)
    else:
        new = msgspec.convert(body, DeviceRegistered)
        update = Device(device=new.device, name=new.name, registered_at=entry.received_at)
    if not is_uuid(update.device) or "\0" in (update.name or ""):
        raise ValueError("a device's id must be a UUID in lower case with a name free of NUL")
    return update


def is_revocation(state: bytes) -> bool:
    """Returns whether `state`, the stored bytes of an event, records the revocation of a token or a
    device."""
    comma = state.find(b",", 0, 30)
    return state.startswith(_REVOKING, comma)


def check_device(device: str) -> None:
    """Raises `InvalidRequest` unless the id of a device is a UUID in lower case."""
    if not is_uuid(device):
        raise InvalidRequest("a device's id must be a UUID in lower case")


def check_space(space: str) -> None:
    """Raises `InvalidRequest` if this text is an invalid name for a space."""
    if not is_space(space):
        raise InvalidRequest(f"{space!r} is an invalid name of a space: use 1-64 of a-z 0-9 - _ .")


def check_space_or_all(space: str) -> None:
    """Raises `InvalidRequest` unless this text is a valid name of a space, or `EVERY_SPACE`."""
    if space != EVERY_SPACE:
        check_space(space)


def check_name(name: str | None) -> None:
    """Raises `InvalidRequest` if the name of a token is empty, longer than 100 characters, or
    unprintable. `None` is accepted. The name is checked because it stays in the log for ever."""
    check_text("name", "-" if name is None else name, NAME_LENGTH_MAX)
