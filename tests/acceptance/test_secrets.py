"""Secrets stay inside the service: responses, output, logs and files of other users lack them."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.embedded.cluster import SERVICE_ROLE
from foldlog.scripts.server.process import environment, is_ready, reserve_port
from tests.helpers import A, changeset, put

ADMIN = "planted-admin-token-0123456789"
TOKEN = "planted-token-of-a-client-0123456789"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.cGxhbnRlZC1zaWduYXR1cmU"
READY_SECONDS_MAX = 60

pytestmark = pytest.mark.seconds(10)


class Service:
    """`foldlog serve`, and all of its output and responses."""

    def __init__(self, folder: Path, env: dict[str, str]):
        self.planted = {"admin": ADMIN, "token": TOKEN, "jwt": JWT}
        self.data = folder / "data"
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = folder / "said"
        self.heard: list[bytes] = []
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foldlog", "serve", "--data", str(self.data),
                 "--port", str(self.port), "--workers", "1"],
                stdout=file, stderr=file, env=environment() | {"FOLDLOG_ACCESS": "tokens"} | env,
                umask=0o022,
            )  # fmt: skip

    def wait_until(self, is_so) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not is_so():
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.said.read_text()
            )
            time.sleep(0.05)

    def ask(self, method: str, path: str, **kwargs) -> httpx.Response | None:
        try:
            answer = httpx.request(method, self.url + path, timeout=30, **kwargs)
        except httpx.HTTPError:
            return None
        self.heard += [answer.content, str(answer.headers.multi_items()).encode()]
        return answer

    def processes(self) -> list[tuple[psutil.Process, list[str]]]:
        """Each process with its command line. Processes of PostgreSQL come and go."""
        own = psutil.Process(self.process.pid)
        found = []
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found.append((process, process.cmdline()))
        return found

    def secrets(self) -> dict[str, bytes]:
        """All values that only the owner may read."""
        found = {name: secret.encode() for name, secret in self.planted.items()}
        for file in (self.data / "secrets").iterdir():
            found[file.name] = file.read_bytes().strip()
        ring = json.loads((self.data / "keys" / "keys.json").read_bytes())
        for use in ("log", "witness"):
            found[f"{use} key"] = ring[use][0]["private"].encode()
        assert len(found) >= 8 and all(len(secret) > 20 for secret in found.values())
        return found

    def grant(self) -> str:
        """Grants a token to a device. Only the response to this request contains it."""
        answer = httpx.post(
            f"{self.url}/v1/admin/spaces/home/tokens",
            headers={"Authorization": f"Bearer {ADMIN}"},
            json={"role": "device", "device": A},
        )
        return str(answer.json()["token"])


@contextmanager
def started(folder: Path, env: dict[str, str]):
    service = Service(folder, env)
    try:
        service.wait_until(lambda: is_ready(service.url))
        yield service
    finally:
        service.process.terminate()
        service.process.wait(60)


@pytest.fixture
def first_token(data_folder):
    """The token that the first start saves in a file, and keeps out of its log."""
    with started(data_folder, {}) as service:
        pass
    assert not re.findall(rb"foldlog_\S{43}", service.said.read_bytes())
    file = data_folder / "data" / "admin-token"
    assert file.stat().st_mode & 0o777 == 0o600
    return file.read_text().strip()


@pytest.fixture
def service(data_folder):
    with started(data_folder, {"FOLDLOG_ADMIN_TOKEN": ADMIN}) as service:
        yield service


def authorizations(service: Service) -> list[str]:
    bearers = [f"Bearer {secret}" for secret in service.planted.values()]
    return [*bearers, f"Basic {TOKEN}", TOKEN, JWT]


def every_kind_of_request(service: Service) -> None:
    push = {"device": A, "sent_at": "2026-11-23T09:00:00.000Z", "changesets": [changeset(put("r"))]}
    for authorization in authorizations(service):
        headers = {"Authorization": authorization, "Cookie": f"session={TOKEN}"}
        for method, path, body in (
            ("POST", "/v1/spaces/home/changesets", push),
            ("POST", "/v1/spaces/home/changesets", {"device": "x"}),
            ("GET", "/v1/spaces/home/events?after=0", None),
            ("GET", f"/v1/spaces/home/events?access_token={TOKEN}", None),
            ("GET", f"/v1/spaces/home/records?token={JWT}", None),
            ("GET", "/v1/spaces/nobody-s/events", None),
            ("PUT", "/v1/admin/spaces/home/collections/tasks", {"schema": {"type": "object"}}),
            ("POST", "/v1/admin/spaces/home/erase", {"reason": 1}),
            ("GET", "/readyz", None),
            ("GET", "/metrics", None),
            ("GET", "/openapi.json", None),
            ("GET", "/nothing", None),
            ("OPTIONS", "/v1/spaces/home/changesets", None),
        ):
            service.ask(method, path, headers=headers, json=body)
    for head in (
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nbad header\r\n\r\n",
        f"NONSENSE {TOKEN}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nX: {'x' * 70_000}\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.sendall(head.encode())
            connection.settimeout(2)
            with suppress(OSError):
                service.heard.append(connection.recv(65_536))


def test_nothing_that_is_seen_holds_a_secret(first_token, service):
    """
    It covers responses, problems, metrics, logs, `ps`, and files that other users can read, also
    while the database is away and every part reports errors. Tokens of authorized callers are
    secrets, too.
    """
    service.planted |= {"first token": first_token, "device's token": service.grant()}
    every_kind_of_request(service)
    for secret in ("first token", "device's token"):
        headers = {"Authorization": f"Bearer {service.planted[secret]}"}
        answer = service.ask("GET", "/v1/spaces/home/events", headers=headers)
        assert answer is not None and answer.status_code == 200, secret
    command_lines = [" ".join(line).encode() for _, line in service.processes()]
    postmaster = next(process for process, line in service.processes() if "-D" in line)
    postmaster.kill()
    every_kind_of_request(service)
    service.wait_until(lambda: is_ready(service.url))
    secrets = service.secrets()
    service.process.terminate()
    assert service.process.wait(60) == 0

    seen = {
        "an answer": b"\n".join(service.heard),
        "a command line": b"\n".join(command_lines),
        "the log": service.said.read_bytes(),
    }
    assert all(len(where) > 500 for where in seen.values())
    assert b'"event":"request"' in seen["the log"]
    for path in service.data.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077:
            seen[str(path)] = path.read_bytes()
    seen["PostgreSQL's log"] = (service.data / "log" / "postgres.log").read_bytes()
    for where, what in seen.items():
        for name, secret in secrets.items():
            assert secret not in what, f"{where} holds {name}"
    # The database stores only the digest of a granted token, so even its own files lack the token.
    granted = [service.planted[name].encode() for name in ("first token", "device's token")]
    for path in service.data.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode):
            found = [secret for secret in granted if secret in path.read_bytes()]
            # The first start saves its token for the operator. The file has only this token.
            expected = granted[:1] if path == service.data / "admin-token" else []
            assert found == expected, path


def test_what_is_made_is_for_its_owner_alone(service):
    """With an ordinary umask, other users can neither read nor list files of the data folder."""
    service.ask("POST", "/v1/spaces/home/changesets", json={
        "device": A, "sent_at": "2026-11-23T09:00:00.000Z", "changesets": [changeset(put("r"))]
    }, headers={"Authorization": f"Bearer {service.grant()}"})  # fmt: skip
    service.wait_until(lambda: list((service.data / "checkpoints").glob("*")))

    def is_open(path: Path) -> bool:
        mode = path.lstat().st_mode
        return not stat.S_ISSOCK(mode) and bool(stat.S_IMODE(mode) & 0o077)

    found = [path for path in (service.data, *service.data.rglob("*")) if is_open(path)]
    # Root runs PostgreSQL as another user, which reads our settings and enters the folder.
    assert set(found) <= {service.data, service.data / "foldlog.conf"}
    assert stat.S_IMODE(service.data.stat().st_mode) in (0o700, 0o711)


def test_the_service_works_as_its_own_role(service):
    """
    Web workers and projectors use it. The owner of the tables connects only during migrations.
    """
    with EmbeddedPostgres(service.data) as attached:
        assert not attached.owned
        with psycopg.connect(attached.superuser_url) as conn:
            roles = conn.execute(
                "SELECT DISTINCT usename FROM pg_stat_activity"
                " WHERE datname = 'foldlog' AND backend_type = 'client backend'"
            ).fetchall()
    assert roles == [(SERVICE_ROLE,)]
    password = (service.data / "secrets" / "foldlog.password").read_text().strip()
    for process, line in service.processes():
        if any(name in line for name in ("web", "projector")):
            assert password not in str(process.environ())
    assert os.environ.get("FOLDLOG_DATABASE_URL") is None
