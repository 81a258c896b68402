"""Stores enrolment codes and their claims in PostgreSQL, and grants the claimed tokens.

A claim is two transactions, because one transaction appends one event: the first one stores the
claim and registers the device, the second one grants the token. If the process dies in between, the
device repeats its claim, which then goes on with the second one.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from psycopg import Cursor

from foldlog.domain.access import DeviceRegistered, Token, access_entry
from foldlog.domain.enrolment import Claim, Enrolment, traded
from foldlog.domain.errors import EnrolmentRefused, InvalidRequest, SpaceImporting
from foldlog.domain.ports import SpaceId
from foldlog.infrastructure.postgres.append.service_event import (
    OpenServiceEvent,
    ServiceEventTransaction,
)
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.log.heads import is_importing

from .access_rows import check_not_revoked, find_device, grant_token, lock_token

INSERT_ENROLMENT = """
INSERT INTO enrolments
       (space, token, code, traded, name, issued_at_ms, issued_by, expires_at_ms,
        token_expires_at_ms, device, digest)
VALUES (%(space)s, %(id)s, %(code)s, %(traded)s, %(name)s, %(issued_at)s, %(issued_by)s,
        %(expires_at)s, %(token_expires_at)s, %(device)s, %(digest)s)
"""

# One of `code` and `traded` is NULL, so only one of the two conditions finds a row.
SELECT_ENROLMENT = """
SELECT token::text, name, issued_at_ms, issued_by, expires_at_ms, token_expires_at_ms,
       device::text, digest
  FROM enrolments
 WHERE space = %(space)s
   AND (code = %(code)s OR traded = %(traded)s)
"""

CLAIM = """
UPDATE enrolments
   SET device = %(device)s,
       digest = %(digest)s
 WHERE space = %(space)s
   AND token = %(id)s
"""

# The uniqueness of digests is checked here, because its violation would be an unexpected error.
SELECT_OF_DIGEST = """
SELECT
  FROM tokens
 WHERE space = %(space)s
   AND digest = %(digest)s
"""


class Enrolments:
    """Implements the methods of the port `Registry` for enrolment."""

    def __init__(self, datastore: Datastore, append_service_event: OpenServiceEvent):
        self._datastore = datastore
        self._append_service_event = append_service_event

    def issue_code(self, space: SpaceId, code: bytes, enrolment: Enrolment) -> None:
        enrolment.check()
        with self._datastore.writing() as cursor:
            if is_importing(cursor, space):
                raise SpaceImporting(space)
            _insert(cursor, space, enrolment, code=code)

    def enrol(self, space: SpaceId, code: bytes, claim: Claim) -> Token:
        with self._datastore.reading() as cursor:  # a guess must create no space
            if _find(cursor, space, code=code) is None:
                raise EnrolmentRefused
        with self._append_service_event(space) as transaction:
            transaction.lock(creates_space=True)
            enrolment = _find(transaction.cursor, space, code=code)
            if enrolment is None:
                raise EnrolmentRefused
            claimed = _claimed(transaction, space, enrolment, claim)
            if claimed is not enrolment:
                params = {"space": space, "id": claimed.id, **msgspec.structs.asdict(claim)}
                transaction.cursor.execute(CLAIM, params)
                _register(transaction, claimed)
        return self._grant(space, claimed)

    def trade(self, space: SpaceId, earlier: Token | None, claim: Claim) -> Token:
        """Implements `Registry.trade`. `earlier` is the token that the device trades, if the space
        knows it."""
        offer = traded(earlier, str(uuid.uuid4()), _now_ms())
        assert earlier is not None and earlier.device is not None, "checked by `traded`"
        with self._append_service_event(space) as transaction:
            transaction.lock()
            cursor = transaction.cursor
            traded(lock_token(cursor, earlier.space, earlier.id), offer.id, _now_ms())
            check_not_revoked(find_device(cursor, space, earlier.device))
            found = _find(cursor, space, traded=earlier.id)
            claimed = _claimed(transaction, space, found or offer, claim)
            if found is None:
                _insert(cursor, space, claimed, traded=earlier.id)
                _register(transaction, claimed)
        return self._grant(space, claimed)

    def _grant(self, space: SpaceId, claimed: Enrolment) -> Token:
        assert claimed.digest is not None, "claimed"
        with self._append_service_event(space) as transaction:
            transaction.lock()
            token = lock_token(transaction.cursor, space, claimed.id)
            if token is not None:
                return token
            return grant_token(
                transaction, space, claimed.id, claimed.digest, claimed.grant, claimed.issued_by
            )


def _claimed(
    transaction: ServiceEventTransaction, space: str, enrolment: Enrolment, claim: Claim
) -> Enrolment:
    """Returns the enrolment as the claim has claimed it. Raises the errors of `Enrolment.claimed`,
    and `InvalidRequest` if another token has the digest of a new claim. The space is locked."""
    cursor = transaction.cursor
    claimed = enrolment.claimed(claim, _now_ms(), find_device(cursor, space, claim.device))
    if claimed is not enrolment:
        params = {"space": space, "digest": claim.digest}
        if cursor.execute(SELECT_OF_DIGEST, params).fetchone() is not None:
            raise InvalidRequest("another token has this digest: make a new secret")
    return claimed


def _register(transaction: ServiceEventTransaction, claimed: Enrolment) -> None:
    assert claimed.device is not None, "claimed"
    body = DeviceRegistered(claimed.device, claimed.name, claimed.issued_by)
    transaction.append(access_entry(transaction.envelope, body))


def _find(
    cursor: Cursor[Any], space: str, *, code: bytes | None = None, traded: str | None = None
) -> Enrolment | None:
    params = {"space": space, "code": code, "traded": traded}
    row = cursor.execute(SELECT_ENROLMENT, params).fetchone()
    if row is None:
        return None
    return Enrolment(**dict(zip(Enrolment.__struct_fields__, row, strict=True)))


def _insert(
    cursor: Cursor[Any],
    space: str,
    enrolment: Enrolment,
    *,
    code: bytes | None = None,
    traded: str | None = None,
) -> None:
    origin = {"space": space, "code": code, "traded": traded}
    cursor.execute(INSERT_ENROLMENT, msgspec.structs.asdict(enrolment) | origin)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
