"""The running service that is measured, and the bare limits on the same machine and PostgreSQL."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.postgres.schema.migrate import migrate
from foldlog.infrastructure.settings import read_settings
from foldlog.scripts.server.process import environment, reserve_port, serving
from foldlog.scripts.server.sockets import listen

from .connection import fetch, request
from .errors import BenchmarkFailed
from .workload import Workload, push_of

T = TypeVar("T")

COMMAND = (sys.executable, "-m", "foldlog")
#: The load comes from one address at full speed, so these limits are lifted.
UNLIMITED = {
    "FOLDLOG_ACCESS": "open",
    "FOLDLOG_LIMITS": "requests_per_second_per_caller=0 requests_per_second_per_address=0 "
    "streams_per_caller_max=0 connections_per_address_max=0 connections_max=100000",
}
SETTLE_SECONDS_MAX = 600.0
#: changesets of one device in a push, so that a page has events of several devices
LOG_CHANGESETS_PER_PUSH = 200
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

COUNT = "SELECT count(*) FROM events WHERE originator_id = %s AND originator_version > %s"

SELECT_LAG = """
SELECT s.head - p.position
  FROM spaces s
  JOIN projections p
    ON p.space = s.space AND p.projection = 'master' AND p.is_live
 WHERE s.space = %s
"""


@dataclass(frozen=True)
class Scale:
    """The amounts of a run."""

    rounds: int
    seconds: float  #: duration of each load
    events: int  #: events in the log that is pulled and rebuilt
    tries: int  #: attempts at a measurement that other processes disturb
    items: int  #: items in the logs of other systems, and in ours for comparison
    followed: int  #: events that one notification announces to the projector
    small: int  #: events of a young log
    grown: int  #: events of an old one
    held: int  #: streams that one worker holds open
    following: int  #: open streams during pushes
    counted_calls: int  #: calls of each kind whose instructions are counted
    counted_events: int  #: events in the log of that count
    page: int = 1_000


FULL = Scale(
    rounds=3,
    seconds=5,
    events=200_000,
    tries=2,
    items=20_000,
    followed=50_000,
    small=10_000,
    grown=10_000_000,
    held=10_000,
    following=1_000,
    counted_calls=300,
    counted_events=10_000,
)
#: only shows that the suite works
QUICK = Scale(
    rounds=1,
    seconds=0.8,
    events=4_000,
    tries=1,
    items=2_000,
    followed=4_000,
    small=2_000,
    grown=20_000,
    held=400,
    following=100,
    counted_calls=20,
    counted_events=2_000,
)


class Bench:
    """The running service, with the data and connections that rows share."""

    def __init__(
        self, scale: Scale, data: Path, port: int, echo_port: int, postgres: EmbeddedPostgres
    ):
        self.scale = scale
        self.data = data
        self.port = port
        self.echo_port = echo_port
        #: servers and connections that rows share; closed before the service stops
        self.stack = ExitStack()
        self._url = postgres.superuser_url
        self.url = make_conninfo(self._url, dbname="foldlog")
        self.database = self._connect(self.url)
        bare_url = self.new_database("bare")
        migrate(bare_url)
        self.bare = self._connect(bare_url)
        # A table for the same rows that has only its key.
        self.bare.execute("CREATE TABLE bare_log (LIKE events)")
        self.bare.execute(
            "ALTER TABLE bare_log ADD PRIMARY KEY (originator_id, originator_version)"
        )
        self._spaces = 0
        self._made: dict[Callable[[Bench], Any], Any] = {}
        self._check_durable()

    def _connect(self, url: str) -> psycopg.Connection[Any]:
        return self.stack.enter_context(psycopg.connect(url, autocommit=True))

    def close(self) -> None:
        self.stack.close()

    def once(self, make: Callable[[Bench], T]) -> T:
        """Returns an object that rows share. The first row that needs the object makes it."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def new_database(self, name: str) -> str:
        """Creates an empty database on the same PostgreSQL, and returns its URL."""
        self.database.execute(f'CREATE DATABASE "{name}"')
        return make_conninfo(self._url, dbname=name)

    def new_space(self) -> str:
        self._spaces += 1
        return f"space-{self._spaces}"

    @cached_property
    def log(self) -> str:
        """The space whose log is pulled and rebuilt. The scale sets its length."""
        history = Workload(seed=7).history(self.scale.events, LOG_CHANGESETS_PER_PUSH)
        self._fill("log", (push_of(items) for items in history))
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

    def settle(self, space: str, seconds_max: float = SETTLE_SECONDS_MAX) -> float:
        """Waits until the master table has caught up. Returns the seconds."""
        started = time.monotonic()
        while time.monotonic() < started + seconds_max:
            found = self.database.execute(SELECT_LAG, (space,)).fetchone()
            if found is not None and found[0] == 0:
                return time.monotonic() - started
            time.sleep(0.02)
        raise BenchmarkFailed(f"the master table of {space} does not catch up")

    def head(self, space: str) -> int:
        found = self.database.execute("SELECT head FROM spaces WHERE space = %s", (space,))
        return int((found.fetchone() or (0,))[0])

    def stored(self, space: str, after: int = 0) -> int:
        """Counts the events in the log itself."""
        found = self.database.execute(COUNT, (space, after))
        return int((found.fetchone() or (0,))[0])

    @property
    def workers_mb(self) -> float:
        """Resident memory of all web workers of the service, in MB."""
        return sum(resident_mb(worker) for worker in web_workers(self.data))

    def checkpoint(self) -> None:
        """Makes a checkpoint, so that each measurement starts with the same state of PostgreSQL."""
        self.database.execute("CHECKPOINT")

    def _show(self, setting: str) -> str:
        return str((self.database.execute(f"SHOW {setting}").fetchone() or ("",))[0])

    def _check_durable(self) -> None:
        for setting in DURABLE:
            if self._show(setting) != "on":
                raise BenchmarkFailed(f"{setting} is off: what is acknowledged may be lost")

    def machine(self) -> dict[str, str]:
        """The facts about the machine that a comparison of figures needs."""
        return {
            "cores": str(os.cpu_count()),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "postgresql": self._show("server_version").split()[0],
            "web workers": str(read_settings({}).web_workers),
            "flushes a second": f"{_flushes_per_second(self.data):.0f}",
        }


def _flushes_per_second(folder: Path) -> float:
    """Flushes of the disk in a second. Each commit waits for one."""
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
    """Starts the service and the bare limits, and stops them at the end."""
    with (
        serving(COMMAND, str(data), env=UNLIMITED) as url,
        echoing() as echo,
        EmbeddedPostgres(data) as postgres,  # joins the cluster of the service
    ):
        bench = Bench(scale, data, port_of(url), echo.port, postgres)
        try:
            yield bench
        finally:
            bench.close()


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def web_workers(data: Path) -> list[psutil.Process]:
    """The web workers of the service on this folder."""
    for process in psutil.Process().children(recursive=True):
        if {"serve", str(data)} <= set(process.cmdline()):
            return [child for child in process.children() if "web" in child.cmdline()]
    raise BenchmarkFailed(f"no service runs on {data}")


def resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


@dataclass(frozen=True)
class Echo:
    """The running echo servers of `echo.py`."""

    port: int
    workers: list[psutil.Process]


@contextmanager
def echoing(workers: int | None = None) -> Iterator[Echo]:
    """Runs the echoes with the server of the service, and with as many workers."""
    port = reserve_port()
    sockets = listen("127.0.0.1", port, workers or read_settings({}).web_workers)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.echo", str(each.fileno())],
            env=environment(),
            cwd=Path(__file__).parents[1],
            pass_fds=[each.fileno()],
        )
        for each in sockets
    ]
    for each in sockets:
        each.close()
    try:
        # Several requests reach each of the workers, and wait for its start.
        for _ in range(4 * len(sockets)):
            fetch(port, [request("POST", "/echo", b"{}")])
        yield Echo(port, [psutil.Process(process.pid) for process in processes])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def decode(body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(body)
    return answer
