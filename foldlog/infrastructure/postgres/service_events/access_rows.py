"""Reads and writes rows of the tables `tokens` and `devices`, in a transaction of the caller.

The registry and the enrolments use the same statements and the same conversions.
"""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg import Cursor

from foldlog.domain.access import Device, Grant, Role, Token, TokenGranted, access_entry
from foldlog.domain.errors import DeviceRevoked
from foldlog.domain.times import format_time
from foldlog.infrastructure.postgres.append.service_event import ServiceEventTransaction

LOCK_TOKEN = """
SELECT token::text, space, role, t.device::text, t.name,
       granted_at_ms, granted_by, expires_at_ms, t.revoked_at_ms, revoked_by, revoked_reason
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

SELECT_DEVICE = """
SELECT device::text, counter, name, registered_at_ms, last_seen_ms, revoked_at_ms
  FROM devices
 WHERE space = %(space)s
   AND device = %(device)s
"""


def grant_token(
    transaction: ServiceEventTransaction,
    space: str,
    id: str,
    digest: bytes,
    grant: Grant,
    by: str | None,
) -> Token:
    """Stores a token of a space, appends its event, and returns the token. The caller has locked
    the space. Raises `DeviceRevoked` if the device of the token was revoked."""
    cursor, envelope = transaction.cursor, transaction.envelope
    if grant.device is not None:
        check_not_revoked(find_device(cursor, space, grant.device))
    token = granted_token(space, id, grant, by, envelope.received_at)
    cursor.execute(INSERT_TOKEN, token_row(token, digest))
    expires_at = None if grant.expires_at is None else format_time(grant.expires_at)
    body = TokenGranted(
        id, grant.role.value, grant.device, grant.name, expires_at, by, digest.hex()
    )
    transaction.append(access_entry(envelope, body))
    return token


def lock_token(cursor: Cursor[Any], space: str, id: str) -> Token | None:
    """Locks and returns a token of a space, or returns `None` if the space does not have it."""
    row = cursor.execute(LOCK_TOKEN, {"space": space, "id": id}).fetchone()
    return None if row is None else token_of(row)


def granted_token(space: str, id: str, grant: Grant, by: str | None, now_ms: int) -> Token:
    return Token(
        id=id,
        space=space,
        granted_at=now_ms,
        granted_by=by,
        **{name: getattr(grant, name) for name in Grant.__struct_fields__},
    )


def token_row(token: Token, digest: bytes) -> dict[str, Any]:
    return msgspec.structs.asdict(token) | {"role": token.role.value, "digest": digest}


def token_of(row: tuple[Any, ...]) -> Token:
    id, space, role, *rest = row
    return Token(**dict(zip(Token.__struct_fields__, (id, space, Role(role), *rest), strict=False)))


def device_of(row: tuple[Any, ...]) -> Device:
    return Device(**dict(zip(Device.__struct_fields__, row, strict=True)))


def find_device(cursor: Cursor[Any], space: str, device: str) -> Device | None:
    """Returns a device of a space, or `None` if the space does not have it."""
    params = {"space": space, "device": device}
    row = cursor.execute(SELECT_DEVICE, params, prepare=True).fetchone()
    return None if row is None else device_of(row)


def check_not_revoked(device: Device | None) -> None:
    """Raises `DeviceRevoked` if the device is revoked."""
    if device is not None and device.revoked_at is not None:
        raise DeviceRevoked(f"the device {device.device} was revoked")
