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
from uuid import UUID

import msgspec
from psycopg import Cursor

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
from foldlog.domain.errors import DeviceRevoked, UnknownSpace, UnknownToken
from foldlog.domain.events import Envelope, LogEntry
from foldlog.domain.names import check_reason, is_uuid
from foldlog.domain.ports import Page, Registry, SpaceId, decode_cursor, encode_cursor
from foldlog.domain.proofs import SALT_BYTES
from foldlog.domain.times import format_time
from foldlog.infrastructure.postgres.append.appender import Locked
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.connection.errors import translated

_TOKEN = """
SELECT token::text, space, role, t.device::text, t.name,
       granted_at_ms, granted_by, expires_at_ms, t.revoked_at_ms, revoked_by, revoked_reason
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

# `t.token`, because `token` alone is the text that is selected.
SELECT_TOKENS = f"""
{_TOKEN}
  FROM tokens t
 WHERE t.space = %(space)s
   AND (granted_at_ms, t.token) > (%(after_ms)s, %(after_token)s)
 ORDER BY granted_at_ms, t.token
 LIMIT %(limit)s
"""

# The one statement that looks across spaces: an operator's, who revokes a token wherever it is. No
# request may come to it, since one space never learns of another.
SELECT_SPACES = """
SELECT space
  FROM tokens
 WHERE token = %(id)s
 ORDER BY space
"""

SELECT_ADMIN = """
SELECT token
  FROM tokens
 WHERE space = ''
   AND role = 'admin'
 ORDER BY token
 LIMIT 1
"""

LOCK_TOKEN = f"""
{_TOKEN}
  FROM tokens t
 WHERE t.space = %(space)s
   AND token = %(id)s
   FOR UPDATE
"""

_INSERT = """
INSERT INTO tokens
       (space, token, digest, role, device, name, granted_at_ms, granted_by, expires_at_ms)
VALUES (%(space)s, %(id)s, %(digest)s, %(role)s, %(device)s, %(name)s,
        %(granted_at)s, %(granted_by)s, %(expires_at)s)
"""

INSERT_TOKEN = f"""
{_INSERT}
RETURNING token
"""

# Services that start at once on one database all come here: the primary key lets in one of them.
INSERT_FIRST_TOKEN = f"""
{_INSERT}
    ON CONFLICT (space, token) DO NOTHING
RETURNING token
"""

REVOKE_TOKEN = """
UPDATE tokens
   SET revoked_at_ms = %(revoked_at)s,
       revoked_by = %(revoked_by)s,
       revoked_reason = %(revoked_reason)s
 WHERE space = %(space)s
   AND token = %(id)s
RETURNING token
"""

# `d.device`, because `device` alone is the text that is selected, of which there is no index.
SELECT_DEVICES = """
SELECT device::text, counter, name, registered_at_ms, last_seen_ms, revoked_at_ms
  FROM devices d
 WHERE d.space = %(space)s
   AND d.device >= %(first)s
 ORDER BY d.device
 LIMIT %(limit)s
"""

SELECT_DEVICE = """
SELECT device::text, counter, name, registered_at_ms, last_seen_ms, revoked_at_ms
  FROM devices
 WHERE space = %(space)s
   AND device = %(device)s
"""

SELECT_SPACE = "SELECT FROM spaces WHERE space = %(space)s"

FIRST_UUID = UUID(int=0)  # which may itself be a device

#: From a device as it is, the body of an event that is to be appended.
Decide = Callable[[Device], msgspec.Struct | None]


class PostgresRegistry(Registry):
    """`append_service_event` is the event store's."""

    def __init__(self, datastore: Datastore, append_service_event: Callable[..., LogEntry | None]):
        self._datastore = datastore
        self._append_service_event = append_service_event

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
            token = _new_token(space, id, grant, by, now_ms)
            with translated(self._datastore), self._datastore.committed() as cursor:
                cursor.execute(INSERT_TOKEN, _row(token, digest))
            return token
        if grant.device is not None:
            self.register(space, grant.device, by=by)
        granted: list[Token] = []

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry:
            if grant.device is not None:
                _check_not_revoked(_find_device(cursor, space, grant.device))
            token = _new_token(space, id, grant, by, locked.received_at)
            cursor.execute(INSERT_TOKEN, _row(token, digest))
            granted.append(token)
            expires_at = None if grant.expires_at is None else format_time(grant.expires_at)
            body = TokenGranted(id, grant.role.value, grant.device, grant.name, expires_at, by)
            return _entry(body, locked)

        self._append_service_event(space, decide, makes_space=True)
        return granted[0]

    def grant_first(self, digest: bytes, grant: Grant, by: str) -> Token | None:
        now_ms = time.time_ns() // 1_000_000
        grant.check(now_ms, by)
        token = _new_token(EVERY_SPACE, FIRST_TOKEN, grant, by, now_ms)
        with translated(self._datastore), self._datastore.committed() as cursor:
            if cursor.execute(SELECT_ADMIN).fetchone() is not None:
                return None
            is_ours = cursor.execute(INSERT_FIRST_TOKEN, _row(token, digest)).fetchone() is not None
        return token if is_ours else None

    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        check_reason(reason, by)
        if space == EVERY_SPACE:
            with translated(self._datastore), self._datastore.committed() as cursor:
                return _revoke(cursor, space, id, time.time_ns() // 1_000_000, reason, by)[0]
        found: list[Token] = []

        def decide(cursor: Cursor[Any], locked: Locked) -> LogEntry | None:
            token, is_new = _revoke(cursor, space, id, locked.received_at, reason, by)
            found.append(token)
            body = TokenRevoked(id, reason, by)
            entry = _entry(body, locked)
            return entry if is_new else None

        try:
            self._append_service_event(space, decide)
        except UnknownSpace:
            raise UnknownToken(f"there is no token {id!r}") from None
        return found[0]

    def spaces_of(self, id: str) -> list[SpaceId]:
        if not is_uuid(id):
            return []
        with translated(self._datastore), self._datastore.rows() as cursor:
            return [space for (space,) in cursor.execute(SELECT_SPACES, {"id": id}).fetchall()]

    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        after = decode_cursor(cursor, int, UUID) if cursor else (-1, FIRST_UUID)
        names = {"space": space, "after_ms": after[0], "after_token": after[1], "limit": limit + 1}
        with translated(self._datastore), self._datastore.rows() as rows:
            found = list(map(_token, rows.execute(SELECT_TOKENS, names).fetchall()))
        page = found[:limit]
        more = len(found) > limit
        return Page(page, encode_cursor(page[-1].granted_at, page[-1].id) if more else None)

    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        check_device(device)
        check_name(name)
        check_reason("-", by)

        def decide(found: Device) -> msgspec.Struct | None:
            _check_not_revoked(found)
            if found.registered_at is not None and name in (None, found.name):
                return None
            return DeviceRegistered(device, name, by)

        return self._change_device(space, device, decide, makes_space=True)

    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        check_device(device)
        check_reason(reason, by)

        return self._change_device(
            space,
            device,
            lambda found: (
                DeviceRevokedBody(device, reason, by) if found.revoked_at is None else None
            ),
            makes_space=False,
        )

    def _change_device(
        self, space: SpaceId, device: str, decide: Decide, *, makes_space: bool
    ) -> Device:
        """Returns what the transaction knew: no read may fail when it is committed."""
        after: list[Device] = []

        def append(cursor: Cursor[Any], locked: Locked) -> LogEntry | None:
            found = _find_device(cursor, space, device) or Device(device=device)
            body = decide(found)
            if body is None:
                after.append(found)
                return None
            entry = _entry(body, locked)
            after.extend(found.after(told) for told in devices_of([entry]))
            return entry

        self._append_service_event(space, append, makes_space=makes_space)
        return after[0]

    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        (first,) = decode_cursor(cursor, UUID) if cursor else (FIRST_UUID,)
        names = {"space": space, "first": first, "limit": limit + 1}
        with translated(self._datastore), self._datastore.rows() as rows:
            if not rows.execute(SELECT_SPACE, names).fetchall():
                raise UnknownSpace(space)
            found = list(map(_device, rows.execute(SELECT_DEVICES, names).fetchall()))
        more = len(found) > limit
        return Page(found[:limit], encode_cursor(found[limit].device) if more else None)


def _new_token(space: str, id: str, grant: Grant, by: str | None, now_ms: int) -> Token:
    return Token(
        id=id,
        space=space,
        granted_at=now_ms,
        granted_by=by,
        **{name: getattr(grant, name) for name in Grant.__struct_fields__},
    )


def _row(token: Token, digest: bytes) -> dict[str, Any]:
    return msgspec.structs.asdict(token) | {"role": token.role.value, "digest": digest}


def _revoke(
    cursor: Cursor[Any], space: str, id: str, now_ms: int, reason: str, by: str | None
) -> tuple[Token, bool]:
    """The token, and whether it was revoked only now. Raises `UnknownToken`."""
    row = None
    if is_uuid(id):
        row = cursor.execute(LOCK_TOKEN, {"space": space, "id": id}).fetchone()
    if row is None:
        raise UnknownToken(f"there is no token {id!r}")
    token = _token(row)
    if token.revoked_at is not None:
        return token, False
    told = {"revoked_at": now_ms, "revoked_by": by, "revoked_reason": reason}
    cursor.execute(REVOKE_TOKEN, {"space": space, "id": id, **told})
    return msgspec.structs.replace(token, **told), True


def _entry(body: msgspec.Struct, locked: Locked) -> LogEntry:
    return access_entry(
        Envelope(
            locked.head + 1, str(uuid.uuid4()), locked.received_at, secrets.token_bytes(SALT_BYTES)
        ),
        body,
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
