"""Enrolment on PostgreSQL: a process that dies in the middle, races, and the guard of the table."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from foldlog.domain.enrolment import CODE_BYTES, Claim, Enrolment, new_code
from foldlog.domain.errors import EnrolmentRefused
from foldlog.infrastructure.postgres.service_events.enrolment import Enrolments
from tests.conftest import as_service
from tests.helpers import A, a_token, new_id

HOUR = 3_600_000


@pytest.fixture
def code(stores):
    """Issues a code of the space `s`, and returns its digest."""
    _, digest = new_code(secrets.token_bytes(CODE_BYTES))
    now = time.time_ns() // 1_000_000
    enrolment = Enrolment(
        id=new_id(), name=None, issued_at=now, issued_by="ada", expires_at=now + HOUR
    )
    stores.registry.issue_code("s", digest, enrolment)
    return digest


def test_a_claim_goes_on_after_a_process_died_in_the_middle(stores, code, monkeypatch):
    claim = Claim(A, a_token()[1])
    with monkeypatch.context() as patch:
        patch.setattr(Enrolments, "_grant", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stores.registry.enrol("s", code, claim)
    assert stores.registry.tokens("s") == []
    token = stores.registry.enrol("s", code, claim)
    assert stores.registry.tokens("s") == [token]
    assert stores.registry.token("s", claim.digest) == token


def test_one_of_many_devices_gets_the_code(stores, code):
    claims = [Claim(new_id(), a_token()[1]) for _ in range(6)]

    def enrol(claim: Claim) -> str | None:
        try:
            return stores.registry.enrol("s", code, claim).device
        except EnrolmentRefused:
            return None

    with ThreadPoolExecutor(6) as threads:
        devices = [device for device in threads.map(enrol, claims) if device is not None]
    [token] = stores.registry.tokens("s")
    assert devices == [token.device]


def test_repetitions_at_once_make_one_token(stores, code):
    claim = Claim(A, a_token()[1])
    with ThreadPoolExecutor(6) as threads:
        tokens = list(threads.map(lambda _: stores.registry.enrol("s", code, claim), range(6)))
    assert stores.registry.tokens("s") == tokens[:1]
    assert len({token.id for token in tokens}) == 1


@pytest.mark.parametrize(
    "change",
    [
        "device = gen_random_uuid()",
        "device = NULL, digest = NULL",
        "digest = '\\x00'",
    ],
)
def test_a_claim_is_final_for_the_role_of_the_service(cluster, database, stores, code, change):
    stores.registry.enrol("s", code, Claim(A, a_token()[1]))
    with (
        psycopg.connect(as_service(cluster, database), autocommit=True) as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="access only ends"),
    ):
        conn.execute(f"UPDATE enrolments SET {change}")


def test_the_role_of_the_service_cannot_change_a_code(cluster, database, stores, code):
    with psycopg.connect(as_service(cluster, database), autocommit=True) as conn:
        for change in ("UPDATE enrolments SET expires_at_ms = 9e15", "DELETE FROM enrolments"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(change)
