"""Acknowledged changesets survive `kill -9` of any process at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

import httpx
import psutil
import pytest

from foldlog.scripts.server.process import environment, is_ready, reserve_port
from tests.helpers import answered, changeset, new_id, put

WRITERS = 4
SPACES = ("one", "two")
READY_SECONDS_MAX = 60
SEED = 20261123


class Service:
    """`foldlog serve`, restarted whenever its process has ended."""

    def __init__(self, folder):
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "service.log").open("ab")
        self._command = [
            *(sys.executable, "-m", "foldlog", "serve"),
            *("--data", str(folder / "data"), "--port", str(self.port)),
        ]
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=self._log, stderr=self._log, env=environment()
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not is_ready(self.url):
            assert time.monotonic() < deadline, "the service did not come back"
            if self.process.poll() is not None:
                self._start()
            time.sleep(0.05)

    def victims(self) -> dict[str, psutil.Process]:
        """Picks one process of each kind."""
        everyone = psutil.Process(self.process.pid).children(recursive=True)
        kinds: dict[str, list[psutil.Process]] = {}
        for process in everyone:
            try:
                command, parent = " ".join(process.cmdline()), process.ppid()
            except psutil.NoSuchProcess:
                continue
            is_direct = parent == self.process.pid
            if "foldlog web" in command:
                kinds.setdefault("web worker", []).append(process)
            elif "projector" in command:
                kinds.setdefault("projector", []).append(process)
            elif "postgres" in command:
                kinds.setdefault("postmaster" if is_direct else "backend", []).append(process)
        found = {kind: random.choice(processes) for kind, processes in kinds.items()}
        return {"service": psutil.Process(self.process.pid), **found}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._log.close()
        return code


class Writer(threading.Thread):
    """A device that pushes batch after batch, and repeats each one until it is answered."""

    def __init__(self, url: str, rng: random.Random):
        super().__init__()
        self.space = rng.choice(SPACES)
        self.device = new_id()
        self.acknowledged: dict[str, int] = {}
        self.repeats = 0
        self.stopping = False
        self.problems: list[str] = []
        self._url = f"{url}/v1/spaces/{self.space}/changesets"

    def run(self) -> None:
        with httpx.Client(timeout=5) as http:
            for batch in self._batches():
                while not self._push(http, batch):
                    time.sleep(0.02)
                if self.stopping:
                    return

    def _batches(self) -> Iterator[list[dict]]:
        counter = 0
        while True:
            size = 1 + counter % 3
            yield [
                changeset(put(new_id(), n=counter + i), counter=counter + i + 1)
                for i in range(size)
            ]
            counter += size

    def _push(self, http: httpx.Client, batch: list[dict]) -> bool:
        body = {"device": self.device, "sent_at": "2026-11-23T09:00:00Z", "changesets": batch}
        try:
            response = http.post(self._url, json=body)
        except httpx.HTTPError:
            return False  # the response is lost, so the device repeats the request
        if response.status_code >= 500:
            return False
        if response.status_code != 200:
            self.problems.append(response.text)
            return True
        for verdict in response.json()["verdicts"]:
            self.acknowledged[verdict["id"]] = verdict["seq"]
            self.repeats += verdict.get("duplicate", False)
        return True


@pytest.mark.seconds(20)
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_loses_no_acknowledged_changeset(data_folder, kills):
    """
    Processes are killed during pushes: the service, a web worker, the projector, PostgreSQL or
    one of its backends. Each acknowledged changeset is in the log once, at its acknowledged seq.
    A repeated push gets the right answer. The log has all seqs, and the master table is its fold.
    """
    rng = random.Random(SEED)
    random.seed(SEED)
    service = Service(data_folder)
    service.wait_until_ready()
    writers = [Writer(service.url, rng) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    killed: dict[str, int] = {}
    try:
        for number in range(kills):
            time.sleep(rng.uniform(0.2, 0.6))
            victims = service.victims()
            kinds = sorted(victims)
            # Every other kill hits the service or PostgreSQL. The rest hits each kind in turn.
            kind = (
                ("service", "postmaster")[number // 2 % 2]
                if number % 2
                else kinds[number // 2 % len(kinds)]
            )
            if kind in victims:
                os.kill(victims[kind].pid, signal.SIGKILL)
                killed[kind] = killed.get(kind, 0) + 1
                if kind == "service":
                    service.process.wait(10)
            service.wait_until_ready()
    finally:
        for writer in writers:
            writer.stopping = True
        service.wait_until_ready()
        for writer in writers:
            writer.join(30)
    assert sum(killed.values()) >= kills * 0.9 and len(killed) >= min(5, kills - 1), killed

    for space in SPACES:
        events = list(pull(service.url, space))
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        seqs = {event["id"]: event["seq"] for event in events}
        assert len(seqs) == len(events)
        for writer in writers:
            if writer.space == space:
                assert not writer.problems
                assert not writer.is_alive()
                assert len(writer.acknowledged) > kills
                own = {e["id"]: e["seq"] for e in events if e["device"] == writer.device}
                # Acknowledged means stored: the last batch of each writer was answered too.
                assert writer.acknowledged == own
                assert sorted(own.values()) == [seqs[id] for id in writer.acknowledged]
    assert_master_table_is_the_fold(service.url)
    assert service.stop() == 0


def pull(url: str, space: str) -> Iterator[dict]:
    after, mark, more = 0, "", True
    while more:
        query = {"after": after, "mark": mark, "limit": 500}
        page = answered(partial(httpx.get, f"{url}/v1/spaces/{space}/events", params=query)).json()
        yield from page["events"]
        after, mark, more = page["through"], page["mark"], page["more"]


def assert_master_table_is_the_fold(url: str) -> None:
    """Each put made its own record, so the events alone tell the expected records."""
    for space in SPACES:
        expected = {op["id"]: op["fields"] for event in pull(url, space) for op in event["ops"]}
        query: dict = {"changed_after": 0, "limit": 1_000, "at_least": len(list(pull(url, space)))}
        found = {}
        while True:
            path = f"{url}/v1/spaces/{space}/records"
            page = answered(partial(httpx.get, path, params=query, timeout=30)).json()
            found |= {record["id"]: record["fields"] for record in page["records"]}
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
        assert found == expected
