"""What is measured: the service as anybody starts it, and beside it, on the same machine and the
same PostgreSQL, the bare things that it is compared with.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.postgres.migrate import migrate
from foldlog.infrastructure.settings import read_settings
from foldlog.scripts.process import environment, free_port, serving

from .connection import fetch, request
from .errors import BenchmarkFailed
from .workload import Workload

COMMAND = (sys.executable, "-m", "foldlog")
SETTLE_SECONDS_MAX = 600.0
ECHO_SECONDS_MAX = 30.0
#: of one device; so a page has several devices in it, as a page of real life
LOG_CHANGESETS_PER_PUSH = 200
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

SELECT_LAG = """
SELECT s.head - p.position
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
 WHERE s.space = %s
"""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    seconds: float  #: of each load
    events: int  #: in the log that is pulled and rebuilt
    tries: int  #: of a measurement that others disturb
    page: int = 1_000


FULL = Scale(rounds=3, seconds=5, events=200_000, tries=2)
#: shows that the suite works, and no more
QUICK = Scale(rounds=1, seconds=0.8, events=4_000, tries=1)


class Bench:
    """The running service, and what its rows need."""

    def __init__(
        self, scale: Scale, data: Path, port: int, echo_port: int, postgres: EmbeddedPostgres
    ):
        self.scale = scale
        self.data = data
        self.port = port
        self.echo_port = echo_port
        self._stack = ExitStack()
        self.database = self._connect(postgres.superuser_url, dbname="foldlog")
        self.database.execute("CREATE DATABASE bare")
        bare_url = make_conninfo(postgres.superuser_url, dbname="bare")
        migrate(bare_url)
        self.bare = self._connect(bare_url)
        # The same row, in a table with nothing but its key.
        self.bare.execute("CREATE TABLE bare_log (LIKE events)")
        self.bare.execute(
            "ALTER TABLE bare_log ADD PRIMARY KEY (originator_id, originator_version)"
        )
        self._spaces = 0
        self._check_durable()

    def _connect(self, url: str, **given: Any) -> psycopg.Connection[Any]:
        return self._stack.enter_context(psycopg.connect(url, autocommit=True, **given))

    def close(self) -> None:
        self._stack.close()

    def new_space(self) -> str:
        self._spaces += 1
        return f"space-{self._spaces}"

    @cached_property
    def log(self) -> str:
        """The space whose log is pulled and rebuilt: as many events as the scale says."""
        pushes = Workload(seed=7).history(self.scale.events, LOG_CHANGESETS_PER_PUSH)
        self._fill("log", pushes)
        self.database.execute("VACUUM ANALYZE")
        return "log"

    @cached_property
    def rows(self) -> list[tuple[Any, ...]]:
        """Some rows of the log, as the service stores them."""
        self._fill("sample", [Workload(seed=8).push(1_000)])
        return self.database.execute(
            "SELECT * FROM events WHERE originator_id = 'sample' ORDER BY originator_version"
        ).fetchall()

    def _fill(self, space: str, pushes: Iterator[bytes] | list[bytes]) -> None:
        path = f"/v1/spaces/{space}/changesets"
        fetch(self.port, (request("POST", path, body) for body in pushes))
        self.settle(space)

    def settle(self, space: str) -> float:
        """Waits until the master table has caught up, and says for how long."""
        started = time.monotonic()
        while time.monotonic() < started + SETTLE_SECONDS_MAX:
            found = self.database.execute(SELECT_LAG, (space,)).fetchone()
            if found is not None and found[0] == 0:
                return time.monotonic() - started
            time.sleep(0.05)
        raise BenchmarkFailed(f"the master table of {space} does not catch up")

    def stored(self, space: str) -> int:
        """Counted in the log itself, not taken from the head."""
        statement = "SELECT count(*) FROM events WHERE originator_id = %s"
        return int((self.database.execute(statement, (space,)).fetchone() or (0,))[0])

    def checkpoint(self) -> None:
        """So that every measurement begins with the same work ahead of PostgreSQL."""
        self.database.execute("CHECKPOINT")

    def _show(self, setting: str) -> str:
        return str((self.database.execute(f"SHOW {setting}").fetchone() or ("",))[0])

    def _check_durable(self) -> None:
        for setting in DURABLE:
            if self._show(setting) != "on":
                raise BenchmarkFailed(f"{setting} is off: what is acknowledged may be lost")

    def machine(self) -> dict[str, str]:
        """What a reader must know to compare figures."""
        return {
            "cores": str(os.cpu_count()),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "postgresql": self._show("server_version").split()[0],
            "web workers": str(read_settings({}).web_workers),
            "flushes a second": f"{_flushes_per_second(self.data):.0f}",
        }


def _flushes_per_second(folder: Path) -> float:
    """What the disk gives: every commit waits for one."""
    path = folder / "flush.probe"
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * 8_192)
        os.fsync(file.fileno())
        count, started = 0, time.perf_counter()
        while time.perf_counter() < started + 0.5:
            os.pwrite(file.fileno(), b"y" * 8_192, 0)
            os.fdatasync(file.fileno())
            count += 1
    path.unlink()
    return count / 0.5


@contextmanager
def running(scale: Scale, data: Path) -> Iterator[Bench]:
    """Everything that is measured, started, and stopped at the end."""
    with (
        serving(COMMAND, str(data)) as url,
        _echo() as echo_port,
        EmbeddedPostgres(data) as postgres,  # joins the one of the service
    ):
        port = urlsplit(url).port
        assert port is not None
        bench = Bench(scale, data, port, echo_port, postgres)
        try:
            yield bench
        finally:
            bench.close()


@contextmanager
def _echo() -> Iterator[int]:
    """The echo app, served just as the service is: same server, settings and number of workers."""
    port = free_port()
    config = "python:foldlog.scripts.gunicorn_config"
    workers = str(read_settings({}).web_workers)
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--config", config, "benchmarks.echo:app"],
        env={
            **environment(),
            "FOLDLOG_BIND": f"127.0.0.1:{port}",
            "FOLDLOG_WEB_WORKERS": workers,
        },
        cwd=Path(__file__).parents[1],
    )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + ECHO_SECONDS_MAX
    while True:
        try:
            fetch(port, [request("POST", "/echo", b"{}")])
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def decode(body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(body)
    return answer
