"""Stores the devices and the tokens of each space in PostgreSQL.

Each append or import of events that contain the id of a device also updates the table of devices
(see log/writer.py). Only this module writes tokens, so the import of a log never gives access.
"""

from __future__ import annotations

import time
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
    Token,
    TokenRevoked,
    access_entry,
    check_device,
    check_name,
    devices_of,
)
from foldlog.domain.enrolment import Claim, Enrolment
from foldlog.domain.errors import SpaceImporting, UnknownSpace, UnknownToken
from foldlog.domain.names import check_reason, is_uuid
from foldlog.domain.ports import Page, Registry, SpaceId, decode_cursor, encode_cursor
from foldlog.infrastructure.postgres.append.service_event import OpenServiceEvent
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.heads import is_importing, select_head

from .access_rows import (
    INSERT_TOKEN,
    check_not_revoked,
    device_of,
    find_device,
    grant_token,
    granted_token,
    lock_token,
    token_of,
    token_row,
)
from .enrolment import Enrolments

# A token of the space precedes one of every space, because it is narrower.
SELECT_BY_DIGEST = """
SELECT token::text, space, role, t.device::text, t.name,
       granted_at_ms, granted_by, expires_at_ms, t.revoked_at_ms, revoked_by, revoked_reason,
       EXISTS (
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

# `t.token` is the indexed column. `token` alone would be the selected text.
SELECT_TOKENS = """
SELECT token::text, space, role, t.device::text, t.name,
       granted_at_ms, granted_by, expires_at_ms, t.revoked_at_ms, revoked_by, revoked_reason
  FROM tokens t
 WHERE t.space = %(space)s
   AND (granted_at_ms, t.token) > (%(after_ms)s, %(after_token)s)
 ORDER BY granted_at_ms, t.token
 LIMIT %(limit)s
"""

# This is the only statement that reads several spaces. It serves an operator's command that revokes
# a token everywhere. Requests must use other statements, because spaces are unknown to each other.
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

# Several services may start at once on one database. The primary key admits one of their tokens.
INSERT_FIRST_TOKEN = """
INSERT INTO tokens
       (space, token, digest, role, device, name, granted_at_ms, granted_by, expires_at_ms)
VALUES (%(space)s, %(id)s, %(digest)s, %(role)s, %(device)s, %(name)s,
        %(granted_at)s, %(granted_by)s, %(expires_at)s)
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

# `d.device` is the indexed column. `device` alone would be the selected text.
SELECT_DEVICES = """
SELECT device::text, counter, name, registered_at_ms, last_seen_ms, revoked_at_ms
  FROM devices d
 WHERE d.space = %(space)s
   AND d.device >= %(first)s
 ORDER BY d.device
 LIMIT %(limit)s
"""

FIRST_UUID = UUID(int=0)  # it is a valid device id too

#: Returns the body of the event that changes a device, or `None` if the device stays as it is.
Decide = Callable[[Device], msgspec.Struct | None]


class PostgresRegistry(Registry):
    """Stores the devices and the access tokens of all spaces in PostgreSQL.

    The parameter `append_service_event` is the method of the event store with the same name. It
    opens a transaction in which one event can be appended to a space.
    """

    def __init__(self, datastore: Datastore, append_service_event: OpenServiceEvent):
        self._datastore = datastore
        self._append_service_event = append_service_event
        self._enrolments = Enrolments(datastore, append_service_event)

    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        row = self._datastore.fetch_one(SELECT_BY_DIGEST, {"space": space, "digest": digest})
        return None if row is None else token_of(row)

    def is_revoked(self, space: SpaceId, device: str) -> bool:
        with self._datastore.reading() as cursor:
            found = find_device(cursor, space, device)
        return found is not None and found.revoked_at is not None

    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        now_ms = time.time_ns() // 1_000_000
        grant.check(now_ms, by)
        if space == EVERY_SPACE:
            token = granted_token(space, id, grant, by, now_ms)
            with self._datastore.writing() as cursor:
                cursor.execute(INSERT_TOKEN, token_row(token, digest))
            return token
        if grant.device is not None:
            self.register(space, grant.device, by=by)
        with self._append_service_event(space) as transaction:
            transaction.lock(creates_space=True)
            return grant_token(transaction, space, id, digest, grant, by)

    def grant_first(self, digest: bytes, grant: Grant, by: str) -> Token | None:
        now_ms = time.time_ns() // 1_000_000
        grant.check(now_ms, by)
        token = granted_token(EVERY_SPACE, FIRST_TOKEN, grant, by, now_ms)
        with self._datastore.writing() as cursor:
            if cursor.execute(SELECT_ADMIN).fetchone() is not None:
                return None
            is_ours = (
                cursor.execute(INSERT_FIRST_TOKEN, token_row(token, digest)).fetchone() is not None
            )
        return token if is_ours else None

    def issue_code(self, space: SpaceId, code: bytes, enrolment: Enrolment) -> None:
        self._enrolments.issue_code(space, code, enrolment)

    def enrol(self, space: SpaceId, code: bytes, claim: Claim) -> Token:
        return self._enrolments.enrol(space, code, claim)

    def trade(self, space: SpaceId, digest: bytes, claim: Claim) -> Token:
        return self._enrolments.trade(space, self.token(space, digest), claim)

    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        check_reason(reason, by)
        if space == EVERY_SPACE:
            with self._datastore.writing() as cursor:
                return _revoke(cursor, space, id, time.time_ns() // 1_000_000, reason, by)[0]
        try:
            with self._append_service_event(space) as transaction:
                transaction.lock()
                cursor, envelope = transaction.cursor, transaction.envelope
                token, is_new = _revoke(cursor, space, id, envelope.received_at, reason, by)
                if is_new:
                    transaction.append(access_entry(envelope, TokenRevoked(id, reason, by)))
        except UnknownSpace:
            raise _unknown_token(id) from None
        return token

    def spaces_of(self, id: str) -> list[SpaceId]:
        if not is_uuid(id):
            return []
        return [space for (space,) in self._datastore.fetch_all(SELECT_SPACES, {"id": id})]

    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        after = decode_cursor(cursor, int, UUID) if cursor else (-1, FIRST_UUID)
        params = {
            "space": space,
            "after_ms": after[0],
            "after_token": after[1],
            "limit": limit + 1,
        }
        with self._datastore.reading() as rows:
            if is_importing(rows, space):
                raise SpaceImporting(space)
            found = list(
                map(token_of, rows.execute(SELECT_TOKENS, params, prepare=True).fetchall())
            )
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
            check_not_revoked(found)
            if found.registered_at is not None and name in (None, found.name):
                return None
            return DeviceRegistered(device, name, by)

        return self._change_device(space, device, decide, creates_space=True)

    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        check_device(device)
        check_reason(reason, by)

        def decide(found: Device) -> msgspec.Struct | None:
            return DeviceRevokedBody(device, reason, by) if found.revoked_at is None else None

        return self._change_device(space, device, decide, creates_space=False)

    def _change_device(
        self, space: SpaceId, device: str, decide: Decide, *, creates_space: bool
    ) -> Device:
        """Appends an event that changes a device, and returns the changed device.

        `decide(device)` returns the content of the event. If it returns `None`, the method appends
        no event and returns the unchanged device. The changed device is computed in the same
        transaction, because a query after the commit could fail.
        """
        with self._append_service_event(space) as transaction:
            transaction.lock(creates_space=creates_space)
            found = find_device(transaction.cursor, space, device) or Device(device=device)
            body = decide(found)
            if body is not None:
                entry = access_entry(transaction.envelope, body)
                transaction.append(entry)
                (change,) = devices_of([entry])
                found = found.after(change)
        return found

    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        (first,) = decode_cursor(cursor, UUID) if cursor else (FIRST_UUID,)
        params = {"space": space, "first": first, "limit": limit + 1}
        with self._datastore.reading() as rows:
            select_head(rows, space)  # raises `UnknownSpace`
            found = list(map(device_of, rows.execute(SELECT_DEVICES, params).fetchall()))
        more = len(found) > limit
        return Page(found[:limit], encode_cursor(found[limit].device) if more else None)


def _revoke(
    cursor: Cursor[Any], space: str, id: str, now_ms: int, reason: str, by: str | None
) -> tuple[Token, bool]:
    """Revokes a token, and returns the token and whether this call has revoked it.

    The second value is `False` if the token was already revoked before. Raises `UnknownToken` if
    the space has no token with this id.
    """
    token = lock_token(cursor, space, id) if is_uuid(id) else None
    if token is None:
        raise _unknown_token(id)
    if token.revoked_at is not None:
        return token, False
    revocation = {"revoked_at": now_ms, "revoked_by": by, "revoked_reason": reason}
    cursor.execute(REVOKE_TOKEN, {"space": space, "id": id, **revocation})
    return msgspec.structs.replace(token, **revocation), True


def _unknown_token(id: str) -> UnknownToken:
    return UnknownToken(f"there is no token {id!r}")
