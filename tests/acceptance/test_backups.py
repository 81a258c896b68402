"""The documented backups: made while the service runs, restored, and served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import httpx
import psycopg
import pytest

from foldlog.client.replica import Replica
from foldlog.client.transport.server import HttpServer
from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.scripts.server.process import environment, serving
from tests.helpers import until

FOLDLOG = [sys.executable, "-m", "foldlog"]
SPACE = "home"

#: Owners of tables and functions, rights on them, and triggers with their firing mode.
RIGHTS = """
SELECT relname, relkind::text, pg_get_userbyid(relowner), relacl::text
  FROM pg_class WHERE relnamespace = 'public'::regnamespace
 UNION ALL
SELECT proname, prosecdef::text, pg_get_userbyid(proowner), proacl::text
  FROM pg_proc WHERE pronamespace = 'public'::regnamespace
 UNION ALL
SELECT attrelid::regclass || '.' || attname, '', '', attacl::text
  FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid = 'events'::regclass
 UNION ALL
SELECT tgrelid::regclass || '.' || tgname, tgenabled::text, '', NULL
  FROM pg_trigger WHERE NOT tgisinternal
 ORDER BY 1, 2, 3, 4
"""
REFUSED = (
    "UPDATE events SET topic = ''",
    "UPDATE events SET state = ''",
    "DELETE FROM events",
    "TRUNCATE events",
)


def foldlog(*args: str, code: int = 0) -> str:
    done = subprocess.run(
        [*FOLDLOG, *args], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def rights(folder) -> list:
    with EmbeddedPostgres(folder) as cluster, psycopg.connect(cluster.url) as conn:
        return conn.execute(RIGHTS).fetchall()


@pytest.fixture
def service(monkeypatch):
    """Starts a service process on a folder."""
    monkeypatch.setenv("FOLDLOG_ACCESS", "open")
    return lambda folder: serving(FOLDLOG, str(folder))


def replica_of(folder, name: str, url: str) -> Replica:
    return Replica(folder / f"{name}.db", space=SPACE, server=HttpServer(url, SPACE))


def write(replica: Replica, *ids: str) -> None:
    for id in ids:
        replica.collection("tasks").put(id, title=id)
    replica.sync()


def events(url: str) -> list[bytes]:
    page = httpx.get(f"{url}/v1/spaces/{SPACE}/events?limit=1000").raise_for_status().json()
    assert not page["more"]
    return [json.dumps(event).encode() for event in page["events"]]


def restore_dump(old, new, backup) -> None:
    restoring = ("--dbname=foldlog", "--exit-on-error", "--single-transaction", str(backup))
    foldlog("pg", "--data", str(new), "pg_restore", *restoring)


def restore_base(old, new, backup) -> None:
    new.mkdir(mode=0o711)
    shutil.move(backup, new / "postgres")


@pytest.mark.seconds(60)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dump", "base backup"])
def test_a_restored_backup_serves_and_heals(data_folder, service, kind):
    """
    The backup is made while the service runs, and the service continues. The restored database has
    the same events and rights: the log is append-only, and erasing works. The signer reports that
    the log is shorter than the signed one. A device that is ahead pushes the lost changesets again.
    After `foldlog fork` the log has another id, and signing resumes.
    """
    old, new, backup = data_folder / "old", data_folder / "new", data_folder / "backup"
    with service(old) as url:
        device = replica_of(data_folder, "device", url)
        write(device, "one", "two")
        kept = events(url)
        if kind == "dump":
            args = ("pg_dump", "--format=custom", f"--file={backup}")
        else:
            args = ("--superuser", "pg_basebackup", f"--pgdata={backup}", "--checkpoint=fast")
        foldlog("pg", "--data", str(old), *args)
        write(device, "three", "four")
        lost = httpx.get(f"{url}/v1/spaces/{SPACE}/events").json()
        checkpoint = f"{url}/v1/spaces/{SPACE}/checkpoint"
        until(lambda: httpx.get(checkpoint).text.splitlines()[1:2] == [str(lost["head"])])
        device.close()
    (restore_dump if kind == "dump" else restore_base)(old, new, backup)
    for folder in ("keys", "checkpoints"):
        shutil.copytree(old / folder, new / folder)
    assert rights(new) == rights(old)
    with EmbeddedPostgres(new) as cluster:
        for statement in REFUSED:
            with psycopg.connect(cluster.url) as conn, pytest.raises(psycopg.Error):
                conn.execute(statement)

    with service(new) as url:
        assert events(url) == kept
        page = httpx.get(f"{url}/v1/spaces/{SPACE}/events?after={lost['head']}")
        assert (page.status_code, page.json()["code"]) == (409, "log-behind")
        until(lambda: "foldlog_signing_stopped_spaces 1" in httpx.get(f"{url}/metrics").text)
        told = foldlog("status", "--data", str(new), code=1)
        assert "log-shrunk" in told

        device = replica_of(data_folder, "device", url)
        until(lambda: (device.sync(), not device.unsent())[1])
        titles = {record["title"] for record in device.collection("tasks")}
        fresh = replica_of(data_folder, "fresh", url)
        fresh.sync()
        assert titles == {record["title"] for record in fresh.collection("tasks")}
        assert titles == {"one", "two", "three", "four"}

        foldlog("erase", SPACE, "tasks", "two", "--reason", "asked", "--yes", "--data", str(new))
        before = httpx.get(f"{url}/v1/spaces/{SPACE}/events").json()["log"]
        after = foldlog("fork", SPACE, "--yes", "--data", str(new)).strip()
        assert before == lost["log"] != after
        until(lambda: "foldlog_signing_stopped_spaces 0" in httpx.get(f"{url}/metrics").text)
        until(lambda: httpx.get(f"{url}/v1/spaces/{SPACE}/events").json()["log"] == after)
        device.sync()
        write(device, "five")
        fresh.sync()
        assert {r["title"] for r in fresh.collection("tasks")} == (titles - {"two"}) | {"five"}
        until(lambda: "wrong" not in _verified(new))
        for replica in (device, fresh):
            replica.close()


def _verified(folder) -> str:
    done = subprocess.run(
        [*FOLDLOG, "verify", SPACE, "--data", str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else f"wrong: {done.stdout}{done.stderr}"
