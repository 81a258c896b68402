"""The devices and tokens of each space.

Devices are noted by whatever brings their events to the log (recorder.py). Tokens are written with
their event, here: a log that is imported grants nobody anything.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from psycopg import Cursor

from ...domain.access import (
    EVERY_SPACE,
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
from ...domain.erasure import check_reason
from ...domain.errors import DeviceRevoked, UnknownSpace, UnknownToken
from ...domain.events import LogEntry
from ...domain.names import is_uuid
from ...domain.ports import Registry, SpaceId
from ...domain.proofs import SALT_BYTES
from ...domain.times import format_time
from .append import Locked
from .datastore import Datastore
from .errors import translated

_TOKEN = """
SELECT token::text, space, role, t.device::text, t.name,
       granted_at_ms, granted_by, expires_at_ms, t.revoked_at_ms
"""

# A token of the space itself goes before one of every space: that one is narrower.
SELECT_BY_DIGEST = f"""
{_TOKEN}, EXISTS (
           SELECT
             FROM devices d
            WHERE d.space = %(space)s
              AND d.device = t.device
              AND d.revoked_at_ms IS NOT NULL
       )
  FROM tokens t
 WHERE t.space IN (%(space)s, '')
   AND t.digest = %(digest)s
 ORDER BY t.space DESC
 LIMIT 1
"""

SELECT_TOKENS = f"""
{_TOKEN}
  FROM tokens t
 WHERE t.space = %(space)s
 ORDER BY granted_at_ms, token
"""

LOCK_TOKEN = f"""
{_TOKEN}
  FROM tokens t
 WHERE t.space = %(space)s
   AND token = %(id)s
   FOR UPDATE
"""

INSERT_TOKEN = """
INSERT INTO tokens
       (space, token, digest, role, device, name, granted_at_ms, granted_by, expires_at_ms)
VALUES (%(space)s, %(id)s, %(digest)s, %(role)s, %(device)s, %(name)s,
        %(granted_at)s, %(granted_by)s, %(expires_at)s)
RETURNING token
"""

REVOKE_TOKEN = """
UPDATE tokens
   SET revoked_at_ms = %(revoked_at)s
 WHERE space = %(space)s
   AND token = %(id)s
RETURNING token
"""

SELECT_DEVICES = """
SELECT device::text, counter, name, registered_at_ms, last_seen_ms, revoked_at_ms
  FROM devices
 WHERE space = %(space)s
 ORDER BY device
"""

SELECT_DEVICE = """
SELECT device::text, counter, name, registered_at_ms, last_seen_ms, revoked_at_ms
  FROM devices
 WHERE space = %(space)s
   AND device = %(device)s
"""

SELECT_SPACE = "SELECT FROM spaces WHERE space = %(space)s"

Decide = Callable[[Cursor[Any], Locked], LogEntry | None]


class PostgresRegistry(Registry):
    """`append_own` is the event store's."""

    def __init__(self, datastore: Datastore, append_own: Callable[..., LogEntry | None]):
        self._datastore = datastore
        self._append_own = append_own

    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        with translated(self._datastore), self._datastore.rows() as cursor:
            names = {"space": space, "digest": digest}
            row = cursor.execute(SELECT_BY_DIGEST, names, prepare=True).fetchone()
        return None if row is None else _token(row)

    def is_revoked(self, space: SpaceId, device: str) -> bool:
        with translated(self._datastore), self._datastore.rows() as cursor:
            found = _find_device(cursor, space, device)
        return found is not None and found.revoked_at is not None

    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        now_ms = time.time_ns() // 1_000_000
        grant.check(now_ms, by)
        if space == EVERY_SPACE:
            with translated(self._datastore), self._datastore.committed() as cursor:
                return _insert(cursor, space, id, digest, grant, by, now_ms)
        if grant.device is not None:
            self.register(space, grant.device, by=by)
        granted: list[Token] = []

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry:
            if grant.device is not None:
                _check_not_revoked(_find_device(cursor, space, grant.device))
            granted.append(_insert(cursor, space, id, digest, grant, by, locked.received_at))
            expires_at = None if grant.expires_at is None else format_time(grant.expires_at)
            body = TokenGranted(id, grant.role.value, grant.device, grant.name, expires_at, by)
            return _entry(body, locked)

        self._append_own(space, decide, makes_space=True)
        return granted[0]

    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        check_reason(reason, by)
        if space == EVERY_SPACE:
            with translated(self._datastore), self._datastore.committed() as cursor:
                return _revoke(cursor, space, id, time.time_ns() // 1_000_000)[0]
        found: list[Token] = []

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry | None:
            token, is_new = _revoke(cursor, space, id, locked.received_at)
            found.append(token)
            body = TokenRevoked(id, reason, by)
            entry = _entry(body, locked)
            return entry if is_new else None

        try:
            self._append_own(space, decide)
        except UnknownSpace:
            raise UnknownToken(f"there is no token {id!r}") from None
        return found[0]

    def tokens(self, space: SpaceId) -> list[Token]:
        with translated(self._datastore), self._datastore.rows() as cursor:
            rows = cursor.execute(SELECT_TOKENS, {"space": space}).fetchall()
        return list(map(_token, rows))

    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        check_device(device)
        check_name(name)
        check_reason("-", by)

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry | None:
            found = _find_device(cursor, space, device)
            _check_not_revoked(found)
            if found is not None and found.registered_at is not None and name in (None, found.name):
                return None
            body = DeviceRegistered(device, name, by)
            return _entry(body, locked)

        return self._change_device(space, device, decide, makes_space=True)

    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        check_device(device)
        check_reason(reason, by)

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry | None:
            found = _find_device(cursor, space, device)
            if found is not None and found.revoked_at is not None:
                return None
            body = DeviceRevokedBody(device, reason, by)
            return _entry(body, locked)

        return self._change_device(space, device, decide, makes_space=False)

    def _change_device(
        self, space: SpaceId, device: str, decide: Decide, *, makes_space: bool
    ) -> Device:
        self._append_own(space, decide, makes_space=makes_space)
        with translated(self._datastore), self._datastore.rows() as cursor:
            found = _find_device(cursor, space, device)
        assert found is not None
        return found

    def devices(self, space: SpaceId) -> list[Device]:
        with translated(self._datastore), self._datastore.rows() as cursor:
            if not cursor.execute(SELECT_SPACE, {"space": space}).fetchall():
                raise UnknownSpace(f"there is no space {space!r}")
            return list(map(_device, cursor.execute(SELECT_DEVICES, {"space": space}).fetchall()))


def _insert(
    cursor: Cursor[Any],
    space: str,
    id: str,
    digest: bytes,
    grant: Grant,
    by: str | None,
    now_ms: int,
) -> Token:
    token = Token(
        id=id,
        space=space,
        granted_at=now_ms,
        granted_by=by,
        **{name: getattr(grant, name) for name in Grant.__struct_fields__},
    )
    names = msgspec.structs.asdict(token) | {"role": grant.role.value, "digest": digest}
    cursor.execute(INSERT_TOKEN, names)
    return token


def _revoke(cursor: Cursor[Any], space: str, id: str, now_ms: int) -> tuple[Token, bool]:
    """The token, and whether it was revoked only now. Raises `UnknownToken`."""
    row = None
    if is_uuid(id):
        row = cursor.execute(LOCK_TOKEN, {"space": space, "id": id}).fetchone()
    if row is None:
        raise UnknownToken(f"there is no token {id!r}")
    token = _token(row)
    if token.revoked_at is not None:
        return token, False
    cursor.execute(REVOKE_TOKEN, {"space": space, "id": id, "revoked_at": now_ms})
    return msgspec.structs.replace(token, revoked_at=now_ms), True


def _entry(body: msgspec.Struct, locked: Locked) -> LogEntry:
    return access_entry(
        body,
        seq=locked.head + 1,
        id=str(uuid.uuid4()),
        received_at=locked.received_at,
        salt=secrets.token_bytes(SALT_BYTES),
    )


def _token(row: tuple[Any, ...]) -> Token:
    id, space, role, *rest = row
    return Token(**dict(zip(Token.__struct_fields__, (id, space, Role(role), *rest), strict=False)))


def _device(row: tuple[Any, ...]) -> Device:
    return Device(**dict(zip(Device.__struct_fields__, row, strict=True)))


def _find_device(cursor: Cursor[Any], space: str, device: str) -> Device | None:
    names = {"space": space, "device": device}
    row = cursor.execute(SELECT_DEVICE, names, prepare=True).fetchone()
    return None if row is None else _device(row)


def _check_not_revoked(device: Device | None) -> None:
    if device is not None and device.revoked_at is not None:
        raise DeviceRevoked(f"the device {device.device} was revoked")
