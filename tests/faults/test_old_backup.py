"""An old base backup is restored under load: devices push the missing changesets again."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from foldlog.client.errors import ServerProblem, Unreachable
from foldlog.client.replica import Replica
from foldlog.client.transport.server import HttpServer
from foldlog.scripts.server.process import environment, reserve_port, serving
from tests.helpers import WAIT_SECONDS, answered, until

from .faults import ADMIN_TOKEN, bearer

FOLDLOG = [sys.executable, "-m", "foldlog"]
SPACE = "home"
DEVICES = 4
CLOSED = {"FOLDLOG_ACCESS": "tokens", "FOLDLOG_ADMIN_TOKEN": ADMIN_TOKEN}
#: made by each device before the backup, after it, and after the restore
CHANGESETS = 20


class Device(threading.Thread):
    """A device that makes changesets, with or without a service."""

    def __init__(self, folder: Path, number: int, url: str):
        super().__init__(daemon=True)
        self.rng = random.Random(number)
        self.stopping = threading.Event()
        self.made: list[str] = []
        self.healed: list[str] = []
        self._url = url
        self._tokens: dict[str, str] = {}
        server = HttpServer(url, SPACE, token=self._token)
        self.replica = Replica(folder / f"device-{number}.db", space=SPACE, server=server)

    def _token(self) -> str:
        """The token of the replica's present device id."""
        device = self.replica.device
        if device not in self._tokens:
            asked = {"role": "device", "device": device}
            path = f"{self._url}/v1/admin/spaces/{SPACE}/tokens"
            answer = httpx.post(path, json=asked, headers=bearer(ADMIN_TOKEN), timeout=20)
            self._tokens[device] = answer.raise_for_status().json()["token"]
        return self._tokens[device]

    def run(self) -> None:
        while not self.stopping.is_set():
            tasks = self.replica.collection("tasks")
            with self.replica.changeset():
                self.made.append(tasks.create(title=self.name).id)
                tasks.increment("total", count=1)
            self.sync()
            time.sleep(self.rng.uniform(0, 0.03))

    def sync(self) -> bool:
        """Syncs. Returns whether all changesets are acknowledged."""
        with suppress(ServerProblem, Unreachable, httpx.HTTPError):
            self.healed += map(str, self.replica.sync().healed)
        return not self.replica.unsent() and not self.replica.status().unacknowledged


def events(url: str) -> list[dict]:
    found: list[dict] = []
    after, more = 0, True
    while more:
        path = f"{url}/v1/spaces/{SPACE}/events?after={after}&limit=1000"
        page = answered(partial(httpx.get, path, headers=bearer(ADMIN_TOKEN))).json()
        found += page["events"]
        after, more = page["through"], page["more"]
    return found


def foldlog(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FOLDLOG, *args], env=environment(), capture_output=True, text=True, check=False
    )


def wait_for_changesets(devices: list[Device]) -> None:
    """Waits until each device has made some more changesets."""
    wanted = [len(device.made) + CHANGESETS for device in devices]
    until(lambda: all(len(d.made) >= n for d, n in zip(devices, wanted, strict=True)))


@pytest.mark.seconds(40)
@pytest.mark.slow
def test_devices_heal_an_old_base_backup_that_is_restored_under_load(data_folder):
    """Each changeset is in the log once, and all devices have equal records in the end."""
    old, new, backup = data_folder / "old", data_folder / "new", data_folder / "backup"
    port = reserve_port()
    with serving(FOLDLOG, str(old), port, CLOSED) as url:
        devices = [Device(data_folder, number, url) for number in range(DEVICES)]
        devices[0].replica.collection("tasks").put("total", count=0)
        for device in devices:
            assert device.sync()
            device.start()
        wait_for_changesets(devices)
        made = foldlog(
            *("pg", "--data", str(old), "--superuser"),
            *("pg_basebackup", f"--pgdata={backup}", "--checkpoint=fast"),
        )
        assert made.returncode == 0, made.stderr
        wait_for_changesets(devices)
        acknowledged = len(events(url))
    new.mkdir(mode=0o711)
    shutil.move(backup, new / "postgres")
    with serving(FOLDLOG, str(new), port, CLOSED):
        # The restored database names the folder that signed it. The new folder signs after this.
        reason = ("--lost", "an older backup was restored")
        taken = foldlog("keys", "takeover", *reason, "--data", str(new))
        assert taken.returncode == 0, taken.stderr
        wait_for_changesets(devices)
        for device in devices:
            device.stopping.set()
        for device in devices:
            device.join(WAIT_SECONDS)
            assert not device.is_alive()
        until(lambda: min([device.sync() for device in devices]))
        for device in devices:
            device.sync()

        assert any(device.healed for device in devices), "the backup lacked nothing"
        log = events(url)
        assert len(log) >= acknowledged
        assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
        changesets = [event["id"] for event in log if event["kind"] == "changeset"]
        assert len(changesets) == len(set(changesets))
        ids = {id for device in devices for id in device.made}
        for device in devices:
            tasks = device.replica.collection("tasks")
            assert {record.id for record in tasks} == ids | {"total"}
            assert tasks["total"]["count"] == len(ids) == len(changesets) - 1
            device.replica.close()
        until(lambda: foldlog("verify", SPACE, "--data", str(new)).returncode == 0)
