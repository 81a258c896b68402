"""A token for every space has no event, so the log, the metrics and the watch tell it."""

from __future__ import annotations

import secrets
import uuid

import psycopg
import pytest
import structlog
from click.testing import CliRunner

from foldlog.domain.access import EVERY_SPACE, Grant, Role
from foldlog.infrastructure.postgres.service_events import token_watch
from foldlog.infrastructure.postgres.service_events.token_watch import WATCH_SECONDS, TokenWatch
from foldlog.infrastructure.postgres.status import gauges
from foldlog.scripts.main import cli
from tests.conftest import as_service
from tests.helpers import changeset, push_of, put


@pytest.fixture
def told(monkeypatch):
    """A function that lets a watch look, and returns its log lines: (level, role, id) of each."""
    capture = structlog.testing.LogCapture()
    # A logger of its own, because the level of the service's logger depends on earlier tests.
    logger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    monkeypatch.setattr(token_watch, "log", logger)

    def look(watch: TokenWatch) -> list[tuple[str, str, str]]:
        capture.entries.clear()
        watch.look()
        return [(line["log_level"], line["role"], line["token"]) for line in capture.entries]

    return look


def test_each_token_for_every_space_is_told_once(cluster, database, stores, datastore, told):
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


def test_status_shows_the_tokens_for_every_space(database, stores):
    """Without a space, because these tokens are those of no space."""
    grant = Grant(role=Role.ADMIN)
    stores.registry.grant(EVERY_SPACE, str(uuid.uuid4()), secrets.token_bytes(32), grant, None)
    stores.push("s", push_of(changeset(put())))
    stores.project()

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["status", *arguments, "--database-url", database])
        assert done.exit_code == 0, done.output
        return done.output

    assert "tokens for every space: 0 reader, 0 auditor, 1 admin" in run()
    assert '{"every_space_tokens": {"reader": 0, "auditor": 0, "admin": 1}}' in run("--json")
    assert "every" not in run("s") + run("s", "--json")
