"""An unfinished import is closed to every route with every token, and an operator sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.domain.access import EVERY_SPACE, Grant, Role
from foldlog.domain.ports import RangeQuery
from foldlog.infrastructure.postgres.append.transfer import Importer
from foldlog.infrastructure.postgres.status import alarms
from tests import bombs
from tests.acceptance.live import served
from tests.conftest import as_service
from tests.helpers import (
    A,
    B,
    a_token,
    changeset,
    new_id,
    operations_of,
    pull_all,
    push_of,
    put,
    until,
)

FOLDLOG = str(Path(sys.executable).with_name("foldlog"))
SENT_AT = "2026-11-23T09:00:00.000Z"
QUERIES = {
    "inclusion": {"seq": "1"},
    "history_of": {"collection": "tasks", "id": "x"},
    "diff": {"from": "1"},
    "consistency": {"from": "1", "to": "2"},
}
BODIES = {
    "push": {"device": A, "sent_at": SENT_AT, "changesets": [changeset(put("x"))]},
    "sync": {"device": A, "sent_at": SENT_AT, "changesets": [changeset(put("x"))], "after": 0},
    "device_ids": {"local_ids": []},
    "define": {"schema": {}, "by": "ada"},
    "erase": {"records": [{"collection": "tasks", "id": "x"}], "reason": "r", "by": "ada"},
    "skip": {"seq": 1, "reason": "r", "by": "ada"},
    "issue_code": {"by": "ada"},
    "enrol": {"code": "0" * 25, "device": B, "digest": "0" * 64},
    "trade": {"device": B, "digest": "0" * 64},
    "grant_token": {"role": "reader", "by": "ada"},
    "revoke_token": {"reason": "r", "by": "ada"},
    "register_device": {"device": B, "by": "ada"},
    "revoke_device": {"reason": "r", "by": "ada"},
}


@pytest.fixture
def url(database, cluster):
    return as_service(cluster, database)


@pytest.fixture
def log_file(stores, url, tmp_path):
    """A log of many events as lines."""
    for _ in range(6):
        stores.push("s", push_of(*[changeset(put(str(n), n=n)) for n in range(500)]))
    file = tmp_path / "log.jsonl"
    run = bombs.run(FOLDLOG, "export", "s", "-o", str(file), "--database-url", url)
    assert run.code == 0, run.err
    return file


def importing(file, url, *more):
    words = ("import", str(file), "--space", "t", "--unsigned", "--database-url", url, *more)
    return bombs.run(FOLDLOG, *words)


def killed_import(file, url, database) -> None:
    """Starts an import, and kills it when it has stored some events."""
    part = file.with_name("slow.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    words = ("import", "-", "--space", "t", "--unsigned", "--database-url", url)
    process = subprocess.Popen([FOLDLOG, *words], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.write(b"".join(lines[:2_500]))
    process.stdin.flush()

    def has_events():
        with psycopg.connect(database) as conn:
            row = conn.execute("SELECT head FROM spaces WHERE space = 't' AND importing").fetchone()
        return row is not None and row[0] > 0

    until(has_events)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not part.exists()


def operations(document):
    for path, method, full, described in operations_of(document, "t"):
        if "{space}" in path:
            yield described["operationId"], method, full


def assert_closed(stores, datastore) -> None:
    """Every route of the document that names a space answers with `space-importing`."""
    access = TokenAccess(stores.registry, stores.log)
    app = create_app(
        store=stores.log,
        master=stores.master,
        tree=stores.proofs,
        registry=stores.registry,
        ready=dict,
        alarms=partial(alarms, datastore),
        access=access,
    )
    tokens = {}
    for role in ("admin", "auditor", "reader", "device"):
        tokens[role], digest = a_token()
        device = A if role == "device" else None
        grant = Grant(role=Role(role), device=device)
        stores.registry.grant(EVERY_SPACE, new_id(), digest, grant, "ada")
    with served(stores.log, app=app) as here, httpx.Client(base_url=here.url, timeout=20) as http:
        assert http.get("/readyz").json()["alarms"]["space-importing"] == 1
        seen = {}
        for name, method, path in operations(http.get("/openapi.json").json()):
            for token in tokens.values():
                answer = http.request(
                    method,
                    path,
                    params=QUERIES.get(name),
                    json=None if method == "GET" else BODIES.get(name, {}),
                    headers={"Authorization": f"Bearer {token}"},
                )
                code = answer.json()["code"] if answer.status_code != 200 else answer.text[:200]
                if answer.status_code != 403:  # this role may not ask
                    seen.setdefault(name, set()).add((answer.status_code, code))
        wrong = {name: found for name, found in seen.items() if found != {(503, "space-importing")}}
        assert len(seen) > 20
        assert not wrong


@pytest.mark.seconds(20)
def test_an_interrupted_import_is_closed_and_resumes(stores, datastore, database, url, log_file):
    """After a kill: no route opens the space, status tells it, and the same command resumes."""
    killed_import(log_file, url, database)
    assert_closed(stores, datastore)
    for words in (["status"], ["status", "t"]):
        ran = bombs.run(FOLDLOG, *words, "--database-url", url)
        assert "space-importing: t" in ran.out, ran.err
    ran = bombs.run(FOLDLOG, "status", "t", "--json", "--database-url", url)
    told = [json.loads(line) for line in ran.out.splitlines()]
    [found] = [line["importing"] for line in told if "importing" in line]
    assert found["space"] == "t" and 0 < found["events"] < 3_000
    ran = importing(log_file, url)
    assert ran.code == 0 and f"imported {3_000 - found['events']:,} events" in ran.err, ran.err
    assert pull_all(stores, "t", limit=1_000) == pull_all(stores, "s", limit=1_000)


@pytest.mark.slow
def test_an_interrupted_import_is_removed(stores, database, url, log_file):
    """The name is free again, and other spaces stay."""
    killed_import(log_file, url, database)
    words = ("remove-import", "t", "--yes", "--by", "ada", "--database-url", url)
    assert bombs.run(FOLDLOG, *words).code == 0
    again = bombs.run(FOLDLOG, *words)
    assert again.code == 3 and "(not-importing)" in again.err
    whole = bombs.run(FOLDLOG, "remove-import", "s", "--yes", "--database-url", url)
    assert whole.code == 3 and "(not-importing)" in whole.err
    stores.push("t", push_of(changeset(put("new"))))
    assert len(pull_all(stores, "t")) == 1
    assert len(pull_all(stores, "s", limit=1_000)) == 3_000


@pytest.mark.slow
def test_two_imports_at_once_make_one_log(stores, url, log_file):
    """Each batch is stored once; the one that loses says so with a code, or stores nothing."""
    ran: list[bombs.Ran] = []
    threads = [
        threading.Thread(target=lambda: ran.append(importing(log_file, url))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert 0 in {one.code for one in ran} or importing(log_file, url).code == 0, ran
    for one in ran:
        assert one.code == 0 or "(import-conflict)" in one.err, one.err
    assert pull_all(stores, "t", limit=1_000) == pull_all(stores, "s", limit=1_000)


@pytest.mark.slow
def test_an_import_into_a_space_with_events_is_refused(stores, url, log_file):
    """It changes nothing there, and neither does an import of the log's own lines."""
    stores.push("t", push_of(changeset(put("own"))))
    before = pull_all(stores, "t")
    ran = importing(log_file, url)
    assert ran.code == 3 and "(import-conflict)" in ran.err
    assert pull_all(stores, "t") == before
    words = ("import", str(log_file), "--unsigned", "--database-url", url)
    assert "imported 0 events" in bombs.run(FOLDLOG, *words).err
    head = stores.range_after("s", RangeQuery(0, 1)).head
    assert head == 3_000


@pytest.mark.slow
def test_a_running_import_is_seen(stores, datastore, log_file):
    """`/readyz` counts it until it is whole."""
    log = stores.range_after("s", RangeQuery(0, 1)).log
    entries = list(stores.entries("s", through=3_000))
    with Importer(stores.datastore).into("t", log) as imported:
        imported.add(entries)
        assert alarms(datastore) == {"space-importing": 1}
        imported.finish()
    assert alarms(datastore) == {}
