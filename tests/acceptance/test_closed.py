"""`foldlog serve` with its default settings refuses every caller without a token."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from foldlog.infrastructure.settings import DATABASE_URL
from foldlog.scripts.main import cli
from foldlog.scripts.server.process import environment, reserve_port, serving
from tests.helpers import A, B, changeset, put

FOLDLOG = (sys.executable, "-m", "foldlog")
CLOSED = {"FOLDLOG_ACCESS": "tokens"}
SENT_AT = "2026-11-23T09:00:00.000Z"


@pytest.fixture
def run(data_folder):
    """Runs a command on the service's folder, and returns its standard output."""

    def run(*arguments: str, code: int = 0) -> str:
        words = [*arguments, "--data", str(data_folder)]
        done = CliRunner().invoke(cli, words, env={DATABASE_URL: None})
        assert done.exit_code == code, done.output
        return done.stdout.strip()

    return run


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_it_is_closed_and_tells_an_admin_s_token_once(data_folder, run):
    """Two workers run, so that each of them must learn of revocations."""
    two = CLOSED | {"FOLDLOG_WEB_WORKERS": "2"}
    with serving(FOLDLOG, str(data_folder), reserve_port(), two) as url:
        [file] = data_folder.rglob("admin-token")
        token = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        granted = check_roles(url, token, run)
    assert files_with(data_folder, token) == [file]
    with serving(FOLDLOG, str(data_folder), reserve_port(), two) as url:
        assert httpx.get(f"{url}/metrics", headers=bearer(token)).status_code == 200
    assert files_with(data_folder, token) == [file]
    for secret in granted:
        assert files_with(data_folder, secret) == []


def files_with(folder, secret: str) -> list[Path]:
    """The files that contain the secret: logs, files of the database, and all others."""
    files = [path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert len(files) > 500, "the database's files are among them"
    return [path for path in files if secret.encode() in path.read_bytes()]


def check_roles(url: str, admin: str, run) -> list[str]:
    """Returns the tokens that were granted."""
    space = f"{url}/v1/spaces/home"
    push = {"device": A, "sent_at": SENT_AT, "changesets": [changeset(put("x"))]}
    grant = {"role": "device", "device": A, "name": "phone"}
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/metrics", headers=bearer(admin)).status_code == 200
    assert httpx.post(f"{space}/changesets", json=push).status_code == 401
    assert httpx.post(f"{space}/changesets", json=push, headers=bearer(admin)).status_code == 403

    granted = httpx.post(
        f"{url}/v1/admin/spaces/home/tokens", json=grant, headers=bearer(admin)
    ).json()
    phone = bearer(granted["token"])
    assert httpx.post(f"{space}/changesets", json=push, headers=phone).status_code == 200

    auditor = run("token", "new", "--role", "auditor", "--space", "home", "--name", "ann")
    assert httpx.get(f"{space}/export", headers=phone).status_code == 403
    assert httpx.get(f"{space}/export", headers=bearer(auditor)).status_code == 200
    run("verify", "home", "--url", url, "--token", auditor)
    run("verify", "home", "--url", url, code=3)

    tablet = run("token", "new", "--role", "device", "--device", B, "--space", "home")
    assert httpx.get(f"{space}/events", headers=bearer(tablet)).status_code == 200
    listed = run("token", "list", "home")
    assert "phone" in listed and "auditor" in listed and tablet not in listed
    assert "admin" in run("token", "list")
    assert B in run("device", "list", "home")

    # A new connection may reach either worker.
    run("device", "revoke", "home", B, "--reason", "lost")
    assert {httpx.get(f"{space}/events", headers=bearer(tablet)).status_code for _ in range(8)} == {
        403
    }
    run("token", "revoke", granted["id"], "--space", "home", "--reason", "lost")
    assert {httpx.get(f"{space}/events", headers=phone).status_code for _ in range(8)} == {401}
    run("token", "revoke", granted["id"], "--space", "work", "--reason", "lost", code=3)
    run("token", "revoke", granted["id"], "--reason", "wherever it is")
    run("token", "new", "--role", "reader", code=2)
    run("token", "new", "--role", "reader", "--space", "NO", code=3)
    run("device", "register", "home", B, code=3)
    run("device", "register", "home", "d" * 8 + A[8:], "--name", "watch")
    return [granted["token"], auditor, tablet]


def test_open_is_for_this_machine_alone(data_folder, monkeypatch):
    monkeypatch.setenv("FOLDLOG_ACCESS", "open")
    monkeypatch.setenv("FOLDLOG_HOST", "0.0.0.0")
    words = ["serve", "--port", str(reserve_port()), "--data", str(data_folder)]
    done = subprocess.run([*FOLDLOG, *words], capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 3, done.stderr
