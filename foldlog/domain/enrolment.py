"""Defines how a new device gets its token: by a one-time code, or by a trade of its earlier token.

An admin issues a code and gives it to the user. The device makes the secret of its token by itself,
and sends the code with the digest of the secret. So the secret never leaves the device. A device
that must take another id, because a copy of its file uses the old one, trades its token once for a
token of the new id.

The same device may repeat its request with the same digest, because an answer can be lost. All
other uses of a claimed code are refused.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from .access import Device, Grant, Role, Token, check_device, check_name
from .errors import DeviceTaken, EnrolmentRefused, InvalidRequest
from .names import check_reason

CODE_SECONDS = 3_600
#: how long an admin may make a code valid at most
CODE_SECONDS_MAX = 30 * 86_400
#: a code has 125 of these random bits
CODE_BYTES = 16
CODE_LENGTH = 25
_GROUP = 5
#: Crockford's base 32, which lacks letters that people confuse with others
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_ALIKES = str.maketrans("OIL", "011", "- \t\r\n")
_CODE = re.compile(f"[{_ALPHABET}]{{{CODE_LENGTH}}}")
_DIGEST = re.compile("[0-9a-f]{64}")


def new_code(random: bytes) -> tuple[str, bytes]:
    """Makes a code from `CODE_BYTES` random bytes. Returns the code, in groups of five characters
    for people, and the digest that the service stores."""
    number = int.from_bytes(random)
    characters = [_ALPHABET[(number >> (5 * place)) & 31] for place in range(CODE_LENGTH)]
    groups = ("".join(characters[at : at + _GROUP]) for at in range(0, CODE_LENGTH, _GROUP))
    code = "-".join(groups)
    return code, digest_of_code(code)


def digest_of_code(code: str) -> bytes:
    """Returns the SHA-256 digest of a code as people type it: case, hyphens and spaces are ignored,
    `O` is read as `0`, and `I` and `L` as `1`.

    Raises `EnrolmentRefused` if the text has another form than a code.
    """
    typed = code.upper().translate(_LOOK_ALIKES)
    if not _CODE.fullmatch(typed):
        raise EnrolmentRefused(f"an enrolment code has {CODE_LENGTH} letters and digits")
    return hashlib.sha256(typed.encode()).digest()


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """A token that will be granted to one device, and the claim of the device that asked for it.
    All times are in ms since 1970."""

    id: str  #: of the token that the device gets
    name: str | None
    issued_at: int
    issued_by: str | None
    expires_at: int
    token_expires_at: int | None = None
    device: str | None = None  #: the device that has claimed it
    digest: bytes | None = None  #: of the secret of this device

    def check(self) -> None:
        """Raises `InvalidRequest` if the name, the issuer or the time of expiry is invalid."""
        check_name(self.name)
        check_reason("-", self.issued_by)
        seconds = (self.expires_at - self.issued_at) / 1_000
        if not 0 < seconds <= CODE_SECONDS_MAX:
            raise InvalidRequest(
                f"a code expires within {CODE_SECONDS_MAX // 86_400} days from now"
            )

    def claimed(self, claim: Claim, now_ms: int, found: Device | None) -> Enrolment:
        """Returns this enrolment as the device of `claim` has claimed it. `found` is the device
        with the id of the claim, if the space has one.

        A repetition of the same claim is accepted at any time. Raises `EnrolmentRefused` if another
        claim came first, or if the code has expired. Raises `DeviceTaken` if the space knows the
        device already.
        """
        if self.device is not None:
            if (self.device, self.digest) != (claim.device, claim.digest):
                raise EnrolmentRefused
            return self
        if now_ms >= self.expires_at:
            raise EnrolmentRefused
        if found is not None:
            raise DeviceTaken(f"the space knows the device {claim.device} already")
        return msgspec.structs.replace(self, device=claim.device, digest=claim.digest)

    @property
    def grant(self) -> Grant:
        """The grant of the token that the device gets."""
        return Grant(
            role=Role.DEVICE,
            device=self.device,
            name=self.name,
            expires_at=self.token_expires_at,
        )


class Claim(msgspec.Struct, frozen=True):
    """The device that asks for a token, and the SHA-256 digest of the secret that it has made."""

    device: str
    digest: bytes


def claim_of(device: str, digest: str) -> Claim:
    """Makes a claim from the texts of a request. `digest` has 64 hex digits.

    Raises `InvalidRequest` if the device is no UUID in lower case, or the digest has another form.
    """
    check_device(device)
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest(
            "`digest` is the SHA-256 digest of the token, 64 hex digits in lower case"
        )
    return Claim(device, bytes.fromhex(digest))


def traded(token: Token | None, id: str, now_ms: int) -> Enrolment:
    """Returns the enrolment, with the id `id`, of a device that trades its token for another one.

    Raises `EnrolmentRefused` unless `token` is a valid token of a device.
    """
    if token is None or token.device is None or not token.is_valid(now_ms):
        raise EnrolmentRefused("only a device's token that this service granted can be traded")
    return Enrolment(
        id=id,
        name=token.name,
        issued_at=now_ms,
        issued_by=f"token {token.id}",
        expires_at=now_ms + CODE_SECONDS * 1_000,
        token_expires_at=token.expires_at,
    )
