"""The devices and tokens of each space, in memory."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol
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
    devices_of,
)
from foldlog.domain.errors import DeviceRevoked, UnknownToken
from foldlog.domain.events import Envelope, LogEntry
from foldlog.domain.names import check_reason
from foldlog.domain.ports import Page, Registry, SpaceId, decode_cursor, encode_cursor
from foldlog.domain.times import format_time


class Log(Protocol):
    """What of a space is asked here."""

    @property
    def entries(self) -> Sequence[LogEntry]: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def devices(self) -> Mapping[str, Device]: ...


#: From the number of the next event and the time, the body of an event that is to be appended.
Decide = Callable[[int], msgspec.Struct | None]


def noted(devices: Mapping[str, Device], entries: Iterable[LogEntry]) -> dict[str, Device]:
    """The devices after these events."""
    found = dict(devices)
    for new in devices_of(entries):
        found[new.device] = found.get(new.device, Device(device=new.device)).after(new)
    return found


class MemoryRegistry(Registry):
    def __init__(self) -> None:
        #: those of every space as well
        self._tokens: dict[tuple[SpaceId, str], Token] = {}
        self._digests: dict[tuple[SpaceId, bytes], str] = {}

    @abstractmethod
    def _space(self, space: SpaceId) -> Log: ...

    @abstractmethod
    def _known_space(self, space: SpaceId) -> Log | None: ...

    @abstractmethod
    def _append_service_event(
        self, space: SpaceId, decide: Callable[[Envelope], LogEntry | None]
    ) -> None:
        """Appends the event that `decide` makes, if any; creates the space if necessary."""

    def _tell(self, space: SpaceId, decide: Decide) -> None:
        def entry(envelope: Envelope) -> LogEntry | None:
            body = decide(envelope.received_at)
            return None if body is None else access_entry(envelope, body)

        self._append_service_event(space, entry)

    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        for of in (space, EVERY_SPACE):
            id = self._digests.get((of, digest))
            if id is not None:
                token = self._tokens[of, id]
                is_revoked = token.device is not None and self.is_revoked(space, token.device)
                return msgspec.structs.replace(token, is_device_revoked=is_revoked)
        return None

    def is_revoked(self, space: SpaceId, device: str) -> bool:
        here = self._known_space(space)
        return here is not None and _is_revoked(here.devices.get(device))

    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        checked_at = time.time_ns() // 1_000_000
        grant.check(checked_at, by)

        def insert(now_ms: int) -> msgspec.Struct:
            if grant.device is not None and space and self.is_revoked(space, grant.device):
                raise DeviceRevoked(f"the device {grant.device} was revoked")
            members = {name: getattr(grant, name) for name in Grant.__struct_fields__}
            token = Token(id=id, space=space, granted_at=now_ms, granted_by=by, **members)
            self._tokens[space, id] = token
            self._digests[space, digest] = id
            expires_at = None if grant.expires_at is None else format_time(grant.expires_at)
            return TokenGranted(id, grant.role.value, grant.device, grant.name, expires_at, by)

        if space == EVERY_SPACE:
            insert(checked_at)
        else:
            if grant.device is not None:
                self.register(space, grant.device, by=by)
            self._tell(space, insert)
        return self._tokens[space, id]

    def grant_first(self, digest: bytes, grant: Grant, by: str) -> Token | None:
        if any(token.role is Role.ADMIN for token in self.tokens(EVERY_SPACE)):
            return None
        return self.grant(EVERY_SPACE, FIRST_TOKEN, digest, grant, by)

    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        check_reason(reason, by)
        if (space, id) not in self._tokens:
            raise UnknownToken(f"there is no token {id!r}")

        def revoke(now_ms: int) -> msgspec.Struct | None:
            token = self._tokens[space, id]
            if token.revoked_at is not None:
                return None
            self._tokens[space, id] = msgspec.structs.replace(
                token, revoked_at=now_ms, revoked_by=by, revoked_reason=reason
            )
            return TokenRevoked(id, reason, by)

        if space == EVERY_SPACE:
            revoke(time.time_ns() // 1_000_000)
        else:
            self._tell(space, revoke)
        return self._tokens[space, id]

    def spaces_of(self, id: str) -> list[SpaceId]:
        return sorted(space for space, known in self._tokens if known == id)

    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        granted_at, id = decode_cursor(cursor, int, UUID) if cursor else (-1, "")
        found = sorted(
            (token.granted_at, token.id) for (of, _), token in self._tokens.items() if of == space
        )
        rest = [place for place in found if place > (granted_at, str(id))]
        page = [self._tokens[space, id] for _, id in rest[:limit]]
        return Page(page, encode_cursor(*rest[limit - 1]) if len(rest) > limit else None)

    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        check_device(device)
        check_name(name)
        check_reason("-", by)

        def decide(now_ms: int) -> msgspec.Struct | None:
            here = self._known_space(space)
            found = None if here is None else here.devices.get(device)
            if _is_revoked(found):
                raise DeviceRevoked(f"the device {device} was revoked")
            is_known = found is not None and found.registered_at is not None
            if is_known and found is not None and name in (None, found.name):
                return None
            return DeviceRegistered(device, name, by)

        self._tell(space, decide)
        return self._device(space, device)

    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        check_device(device)
        check_reason(reason, by)
        self._space(space)
        self._tell(
            space,
            lambda now_ms: (
                None if self.is_revoked(space, device) else DeviceRevokedBody(device, reason, by)
            ),
        )
        return self._device(space, device)

    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        after = str(decode_cursor(cursor, UUID)[0]) if cursor else ""
        here = self._space(space)
        rest = sorted(device for device in {*here.devices, *here.counters} if device > after)
        page = [self._device(space, device) for device in rest[:limit]]
        return Page(page, encode_cursor(rest[limit - 1]) if len(rest) > limit else None)

    def _device(self, space: SpaceId, device: str) -> Device:
        here = self._space(space)
        seen = [entry.received_at for entry in here.entries if entry.device == device]
        return msgspec.structs.replace(
            here.devices.get(device, Device(device=device)),
            counter=here.counters.get(device, 0),
            last_seen=max(seen, default=None),
        )


def _is_revoked(device: Device | None) -> bool:
    return device is not None and device.revoked_at is not None
