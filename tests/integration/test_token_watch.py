"""A token for every space has no event, so the log, the metrics and the watch tell it."""

from __future__ import annotations

import secrets
import uuid

import psycopg
import structlog

from foldlog.domain.access import EVERY_SPACE, Grant, Role
from foldlog.infrastructure.postgres.service_events.token_watch import WATCH_SECONDS, TokenWatch
from foldlog.infrastructure.postgres.status import gauges
from tests.conftest import as_service


def told(watch: TokenWatch) -> list[tuple[str, str, str]]:
    with structlog.testing.capture_logs() as lines:
        watch.look()
    return [(line["log_level"], line["role"], line["token"]) for line in lines]


def test_each_token_for_every_space_is_told_once(cluster, database, stores, datastore):
    """Also one that the service's role inserts past the service and revokes at once."""
    first = str(uuid.uuid4())
    registry = stores.registry
    registry.grant(EVERY_SPACE, first, secrets.token_bytes(32), Grant(role=Role.READER), "ada")
    watch = TokenWatch(datastore)
    assert told(watch) == [("info", "reader", first)]
    assert told(watch) == []

    second = str(uuid.uuid4())
    with psycopg.connect(as_service(cluster, database)) as conn:
        conn.execute(
            "INSERT INTO tokens (space, token, digest, role, granted_at_ms) "
            "VALUES ('', %s, %s, 'admin', 0)",
            (second, secrets.token_bytes(32)),
        )
        conn.execute("UPDATE tokens SET revoked_at_ms = 1 WHERE token = %s", (second,))
    assert told(watch) == [("warning", "admin", second)]
    assert told(watch) == []
    assert WATCH_SECONDS < 60


def test_the_metrics_count_the_tokens_for_every_space(stores, datastore):
    """A revoked token no longer counts."""
    ids = [str(uuid.uuid4()) for _ in range(2)]
    for id in ids:
        grant = Grant(role=Role.ADMIN)
        stores.registry.grant(EVERY_SPACE, id, secrets.token_bytes(32), grant, None)
    assert counted(datastore) == {"reader": 0, "auditor": 0, "admin": 2}
    stores.registry.revoke_token(EVERY_SPACE, ids[0], reason="lost")
    assert counted(datastore) == {"reader": 0, "auditor": 0, "admin": 1}


def counted(datastore) -> dict[str, float]:
    found = [one for one in gauges(datastore) if one.name == "foldlog_every_space_tokens"]
    return {gauge.labels["role"]: gauge.value for gauge in found}
