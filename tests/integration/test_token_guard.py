"""The database itself refuses access without an event: no role of the service can make an admin."""

from __future__ import annotations

import json
import secrets
import uuid

import psycopg
import pytest

from foldlog.domain.access import EVERY_SPACE, Grant, Role, digest_of
from foldlog.domain.errors import DeviceRevoked
from foldlog.infrastructure.postgres.service_events import access_rows
from tests.conftest import as_service
from tests.helpers import A

DIGEST = digest_of("a token of an attacker")
FORGED = {
    "space": "s",
    "token": str(uuid.UUID(int=7)),
    "digest": DIGEST,
    "role": "admin",
    "granted_at_ms": 1,
}


def granted(stores, role: Role = Role.READER, space: str = "s", **more) -> str:
    """Grants a token by the service, and returns its id."""
    id = str(uuid.uuid4())
    stores.registry.grant(space, id, secrets.token_bytes(32), Grant(role=role, **more), None)
    return id


@pytest.fixture
def service(cluster, database, stores):
    """A connection with the service's role, to a space with one reader."""
    granted(stores)
    with psycopg.connect(as_service(cluster, database), autocommit=True) as conn:
        yield conn


def refused():
    """Expects the refusal of a token without its event, which comes at the commit."""
    return pytest.raises(psycopg.errors.InsufficientPrivilege, match="its event alone")


def insert(conn, **row) -> None:
    names, marks = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    conn.execute(f"INSERT INTO tokens ({names}) VALUES ({marks})", row)


def test_a_token_without_its_event_is_refused(service):
    """Inserted alone, so that the statement is the transaction."""
    with refused():
        insert(service, **FORGED)
    assert service.execute("SELECT count(*) FROM tokens").fetchone() == (1,)


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "admin"},
        {"digest": DIGEST},
        {"device": A},
        {"expires_at_ms": 4_000_000_000_000},
        {"token": str(uuid.UUID(int=7))},
    ],
    ids=lambda changed: next(iter(changed)),
)
@pytest.mark.parametrize("expires_at", [None, 3_999_999_999_999])
def test_a_token_is_what_its_event_says(stores, service, monkeypatch, changed, expires_at):
    """A row that differs from its event in one column is refused together with the event."""
    columns = {"token": "id", "expires_at_ms": "expires_at"}
    renamed = {columns.get(name, name): value for name, value in changed.items()}
    row = access_rows.token_row
    monkeypatch.setattr(
        access_rows, "token_row", lambda token, digest: row(token, digest) | renamed
    )
    before = service.execute("SELECT head FROM spaces").fetchone()
    with pytest.raises(Exception, match="its event alone"):
        granted(stores, expires_at=expires_at)
    assert service.execute("SELECT count(*) FROM tokens").fetchone() == (1,)
    assert service.execute("SELECT head FROM spaces").fetchone() == before


def forge_event(conn, seq: int, topic: str = "token-granted/1", **body: str) -> None:
    """Appends an event past the service. The service's role may append any event."""
    header = {"seq": seq, "kind": topic.partition("/")[0], "id": str(uuid.uuid4())}
    state = json.dumps(header | {"body": body}).encode()
    conn.execute(
        "INSERT INTO events (originator_id, originator_version, topic, state, event_id, "
        "received_at_ms, salt, ops_hash) VALUES ('s', %s, %s, %s, %s, 1, %s, %s)",
        (seq, topic, state, header["id"], bytes(32), bytes(32)),
    )
    conn.execute("UPDATE spaces SET head = %s WHERE space = 's'", (seq,))


def forged_body(**more: str) -> dict[str, str]:
    return {"token": FORGED["token"], "role": "admin", "digest": DIGEST.hex()} | more


def test_a_forged_event_stays_in_the_log(service):
    """A grant needs its event, and the event is there for every reader of the log."""
    with service.transaction():
        forge_event(service, 2, **forged_body())
        insert(service, **FORGED)
    for hidden in (
        "DELETE FROM events WHERE originator_version = 2",
        "UPDATE events SET topic = 'note/1' WHERE originator_version = 2",
        "UPDATE spaces SET head = 1",
        "UPDATE spaces SET head = 0, mark = ''",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(hidden)


def test_the_event_cannot_be_taken_back_after_the_check(service):
    """An early check of the constraint counts only if the event stays."""
    with refused(), service.transaction():
        insert(service, **FORGED)
        with service.transaction(force_rollback=True):
            forge_event(service, 2, **forged_body())
            service.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert service.execute("SELECT count(*) FROM tokens").fetchone() == (1,)


@pytest.mark.parametrize(
    "event",
    [
        {"topic": "device-registered/1", **forged_body()},
        forged_body(role="reader"),
        forged_body(token=str(uuid.UUID(int=8))),
        {},
    ],
)
def test_another_event_is_not_enough(service, event):
    with refused(), service.transaction():
        forge_event(service, 2, **event)
        insert(service, **FORGED)


def test_a_removed_import_leaves_no_token_behind(service):
    """Its events go, so a token of it would later be an admin of a new space without an event."""
    with refused(), service.transaction():
        service.execute("INSERT INTO spaces (space, importing) VALUES ('t', true)")
        service.execute(
            "INSERT INTO events SELECT 't', originator_version, topic, state, event_id, device,"
            " received_at_ms, collections, salt, ops_hash FROM events"
        )
        service.execute("UPDATE spaces SET head = 1 WHERE space = 't'")
        service.execute(
            "INSERT INTO tokens (space, token, digest, role, granted_at_ms) "
            "SELECT 't', token, digest, role, 1 FROM tokens"
        )


@pytest.mark.parametrize(
    "expires_at", [None, 4_000_000_000_000, 4_000_000_000_007, 253_402_300_799_999]
)
def test_grants_of_the_service_pass(stores, service, expires_at):
    """With and without a device, an expiry and a name with letters of all kinds."""
    granted(stores, Role.DEVICE, device=A, expires_at=expires_at)
    granted(stores, Role.ADMIN, name='Zoë "\\" 日本', expires_at=expires_at)
    granted(stores, Role.ADMIN, space=EVERY_SPACE, expires_at=expires_at)
    assert service.execute("SELECT count(*) FROM tokens").fetchone() == (4,)


CHANGES = [
    "role = 'admin'",
    "digest = '\\x00'",
    "space = 'other'",
    "space = ''",
    "token = gen_random_uuid()",
    "device = gen_random_uuid()",
    "expires_at_ms = 9000000000000",
    "granted_at_ms = 0",
    "granted_by = 'nobody'",
    "name = 'x'",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_token_never_changes(service, database, change):
    """Neither for the service's role, nor for the owner while the triggers are there."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        service.execute(f"UPDATE tokens SET {change}")
    with (
        psycopg.connect(database) as owner,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="access only ends"),
    ):
        owner.execute(f"UPDATE tokens SET {change}, revoked_at_ms = 1")


def test_a_revocation_is_final(stores, service):
    """A revoked token and a revoked device stay revoked."""
    id = granted(stores, Role.DEVICE, device=A)
    stores.registry.revoke_token("s", id, reason="lost")
    stores.registry.revoke_device("s", A, reason="lost")
    for statement in (
        f"UPDATE tokens SET revoked_at_ms = NULL WHERE token = '{id}'",
        f"UPDATE tokens SET revoked_at_ms = 9 WHERE token = '{id}'",
        f"UPDATE tokens SET revoked_reason = 'never' WHERE token = '{id}'",
        "UPDATE devices SET revoked_at_ms = NULL",
        "UPDATE devices SET revoked_at_ms = revoked_at_ms + 1",
        f"INSERT INTO devices (space, device) VALUES ('s', '{A}') "
        "ON CONFLICT (space, device) DO UPDATE SET revoked_at_ms = NULL",
        "WITH gone AS (DELETE FROM devices RETURNING space) SELECT * FROM gone",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(statement)
    with pytest.raises(DeviceRevoked):
        granted(stores, Role.DEVICE, device=A)
