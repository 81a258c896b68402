"""Stores the devices and the tokens of each space in memory."""

from __future__ import annotations

import time
import uuid
from typing import Any
from uuid import UUID

import msgspec

from foldlog.domain.access import (
    EVERY_SPACE,
    FIRST_TOKEN,
    Device,
    DeviceRegistered,
    DeviceRevokedBody,
    Grant,
    Role,
    Token,
    TokenGranted,
    TokenRevoked,
    access_entry,
    check_device,
    check_name,
)
from foldlog.domain.enrolment import Claim, Enrolment, traded
from foldlog.domain.errors import (
    DeviceRevoked,
    EnrolmentRefused,
    InvalidRequest,
    UnknownToken,
)
from foldlog.domain.names import check_reason
from foldlog.domain.ports import Page, Registry, SpaceId, decode_cursor, encode_cursor
from foldlog.domain.times import format_time

from .spaces import MemorySpaces


class MemoryRegistry(MemorySpaces, Registry):
    """Stores the devices and the access tokens of all spaces in memory."""

    def __init__(self, **members: Any) -> None:
        super().__init__(**members)
        self._tokens: dict[tuple[SpaceId, str], Token] = {}
        self._digests: dict[tuple[SpaceId, bytes], str] = {}
        #: by space, and by the digest of the code or the id of the traded token
        self._enrolments: dict[tuple[SpaceId, bytes | str], Enrolment] = {}

    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        for of in (space, EVERY_SPACE):
            id = self._digests.get((of, digest))
            if id is not None:
                token = self._tokens[of, id]
                is_revoked = token.device is not None and self.is_revoked(space, token.device)
                return msgspec.structs.replace(token, is_device_revoked=is_revoked)
        return None

    def is_revoked(self, space: SpaceId, device: str) -> bool:
        here = self._spaces.get(space)
        found = None if here is None else here.devices.get(device)
        return found is not None and found.revoked_at is not None

    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        now_ms = time.time_ns() // 1_000_000
        grant.check(now_ms, by)
        if space == EVERY_SPACE:
            return self._insert(space, id, digest, grant, by, now_ms)
        if grant.device is not None:
            self.register(space, grant.device, by=by)
        with self._append_service_event(space) as transaction:
            envelope = transaction.envelope
            if grant.device is not None:
                self._check_not_revoked(space, grant.device)
            token = self._insert(space, id, digest, grant, by, envelope.received_at)
            expires_at = None if grant.expires_at is None else format_time(grant.expires_at)
            body = TokenGranted(
                id, grant.role.value, grant.device, grant.name, expires_at, by, digest.hex()
            )
            transaction.append(access_entry(envelope, body))
        return token

    def _insert(
        self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None, now_ms: int
    ) -> Token:
        """Creates, stores and returns a token. The log is left unchanged."""
        members = {name: getattr(grant, name) for name in Grant.__struct_fields__}
        token = Token(id=id, space=space, granted_at=now_ms, granted_by=by, **members)
        self._tokens[space, id] = token
        self._digests[space, digest] = id
        return token

    def grant_first(self, digest: bytes, grant: Grant, by: str) -> Token | None:
        if any(token.role is Role.ADMIN for token in self.tokens(EVERY_SPACE)):
            return None
        return self.grant(EVERY_SPACE, FIRST_TOKEN, digest, grant, by)

    def issue_code(self, space: SpaceId, code: bytes, enrolment: Enrolment) -> None:
        enrolment.check()
        self._enrolments[space, code] = enrolment

    def enrol(self, space: SpaceId, code: bytes, claim: Claim) -> Token:
        enrolment = self._enrolments.get((space, code))
        if enrolment is None:
            raise EnrolmentRefused
        return self._claim(space, code, enrolment, claim)

    def trade(self, space: SpaceId, digest: bytes, claim: Claim) -> Token:
        earlier = self.token(space, digest)
        offer = traded(earlier, str(uuid.uuid4()), time.time_ns() // 1_000_000)
        assert earlier is not None and earlier.device is not None, "checked by `traded`"
        self._check_not_revoked(space, earlier.device)
        found = self._enrolments.get((space, earlier.id))
        return self._claim(space, earlier.id, found or offer, claim)

    def _claim(
        self, space: SpaceId, origin: bytes | str, enrolment: Enrolment, claim: Claim
    ) -> Token:
        """Stores a claim, registers its device, and grants its token, unless they are there."""
        here = self._spaces.get(space)
        known = {} if here is None else {**here.state.counters, **here.devices}
        found = self._device(space, claim.device) if claim.device in known else None
        claimed = enrolment.claimed(claim, time.time_ns() // 1_000_000, found)
        if claimed is enrolment:
            return self._tokens[space, enrolment.id]
        if (space, claim.digest) in self._digests:
            raise InvalidRequest("another token has this digest: make a new secret")
        self._enrolments[space, origin] = claimed
        self.register(space, claim.device, name=claimed.name, by=claimed.issued_by)
        return self.grant(space, claimed.id, claim.digest, claimed.grant, claimed.issued_by)

    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        check_reason(reason, by)
        if (space, id) not in self._tokens:
            raise UnknownToken(f"there is no token {id!r}")
        if space == EVERY_SPACE:
            return self._revoke(space, id, time.time_ns() // 1_000_000, reason, by)[0]
        with self._append_service_event(space) as transaction:
            envelope = transaction.envelope
            token, is_new = self._revoke(space, id, envelope.received_at, reason, by)
            if is_new:
                transaction.append(access_entry(envelope, TokenRevoked(id, reason, by)))
        return token

    def _revoke(
        self, space: SpaceId, id: str, now_ms: int, reason: str, by: str | None
    ) -> tuple[Token, bool]:
        """Revokes a token, and returns the token and whether this call has revoked it.

        The second value is `False` if the token was already revoked before.
        """
        token = self._tokens[space, id]
        if token.revoked_at is not None:
            return token, False
        token = msgspec.structs.replace(
            token, revoked_at=now_ms, revoked_by=by, revoked_reason=reason
        )
        self._tokens[space, id] = token
        return token, True

    def spaces_of(self, id: str) -> list[SpaceId]:
        return sorted(space for space, known in self._tokens if known == id)

    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        granted_at, id = decode_cursor(cursor, int, UUID) if cursor else (-1, "")
        found = sorted(
            (token.granted_at, token.id) for (of, _), token in self._tokens.items() if of == space
        )
        rest = [position for position in found if position > (granted_at, str(id))]
        page = [self._tokens[space, id] for _, id in rest[:limit]]
        return Page(page, encode_cursor(*rest[limit - 1]) if len(rest) > limit else None)

    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        check_device(device)
        check_name(name)
        check_reason("-", by)
        with self._append_service_event(space) as transaction:
            self._check_not_revoked(space, device)
            here = self._spaces.get(space)
            found = None if here is None else here.devices.get(device)
            is_known = found is not None and found.registered_at is not None
            if not is_known or found is None or name not in (None, found.name):
                body = DeviceRegistered(device, name, by)
                transaction.append(access_entry(transaction.envelope, body))
        return self._device(space, device)

    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        check_device(device)
        check_reason(reason, by)
        self._space(space)
        with self._append_service_event(space) as transaction:
            if not self.is_revoked(space, device):
                body = DeviceRevokedBody(device, reason, by)
                transaction.append(access_entry(transaction.envelope, body))
        return self._device(space, device)

    def _check_not_revoked(self, space: SpaceId, device: str) -> None:
        if self.is_revoked(space, device):
            raise DeviceRevoked(f"the device {device} was revoked")

    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        after = str(decode_cursor(cursor, UUID)[0]) if cursor else ""
        here = self._space(space)
        rest = sorted(device for device in {*here.devices, *here.state.counters} if device > after)
        page = [self._device(space, device) for device in rest[:limit]]
        return Page(page, encode_cursor(rest[limit - 1]) if len(rest) > limit else None)

    def _device(self, space: SpaceId, device: str) -> Device:
        here = self._space(space)
        seen = [entry.received_at for entry in here.entries if entry.device == device]
        return msgspec.structs.replace(
            here.devices.get(device, Device(device=device)),
            counter=here.state.counters.get(device, 0),
            last_seen=max(seen, default=None),
        )
