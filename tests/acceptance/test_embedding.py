"""The service inside another ASGI application, as docs/how-to/embed.md prints it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from foldlog.scripts.server.process import reserve_port
from tests.helpers import A, changeset, put, until

from .conftest import SENT_AT

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "embed.md").read_text("utf-8")
FOLDLOG = (sys.executable, "-m", "foldlog")


@pytest.fixture
def processes(data_folder):
    """Starts commands on one data folder, with tokens on; ends them after the test."""
    env = os.environ | {"FOLDLOG_DATA": str(data_folder), "FOLDLOG_ACCESS": "tokens"}
    started = []

    def start(*command: str) -> None:
        started.append(subprocess.Popen(command, env=env, cwd=data_folder.parent))

    def run(*command: str) -> str:
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    yield start, run
    for process in reversed(started):
        process.terminate()
    for process in started:
        process.wait(30)


def test_the_page_s_application_serves_below_its_path(processes, data_folder):
    start, run = processes
    port = reserve_port()
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "port=8000" in code
    program = data_folder / "app.py"
    program.write_text(code.replace("port=8000", f"port={port}"))
    start(sys.executable, str(program))
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/sync/healthz").status_code == 200
        except httpx.TransportError:
            return False

    until(is_up, seconds=60)
    start(*FOLDLOG, "projector")
    token = run(
        *FOLDLOG, "token", "new", "--role", "device", "--space", "home", "--device", A
    ).split()[-1]
    with httpx.Client(base_url=f"{url}/sync", timeout=30) as http:
        http.headers["Authorization"] = f"Bearer {token}"
        body = {"device": A, "sent_at": SENT_AT, "changesets": [changeset(put("r", x=1))]}
        stored = http.post("/v1/spaces/home/changesets", json=body)
        assert stored.status_code == 200, stored.text
        head = stored.json()["head"]
        answer = http.get(f"/v1/spaces/home/records/tasks/r?at_least={head}")
        assert answer.json()["record"]["fields"] == {"x": 1}
        assert http.get("/%761/spaces/home/events").json()["code"] == "no-such-path"
        assert httpx.get(f"{url}/sync/v1/spaces/home/events").status_code == 401
    assert httpx.get(f"{url}/elsewhere").text == "my own page"
