"""The service with its database, and the faults that are done to it.

A fault is over when its function returns. A sleep in a fault is the fault's duration.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from foldlog.infrastructure.embedded import EmbeddedPostgres
from foldlog.infrastructure.embedded.cluster import SERVICE_ROLE
from foldlog.infrastructure.postgres.schema.grants import grant
from foldlog.infrastructure.postgres.schema.migrate import migrate
from foldlog.infrastructure.signing.keys import make_keys
from foldlog.scripts.server.process import environment, is_ready, reserve_port
from tests.helpers import answered, until

from .proxy import CUTS, SLOW, Proxy

READY_SECONDS_MAX = 60.0
ADMIN_TOKEN = "the token of an admin, of faults"
#: of the file system that is filled
DISK_BYTES = 500 * 2**20
#: settings for a small disk
SMALL = {"max_wal_size": "64MB", "min_wal_size": "32MB", "shared_buffers": "32MB"}


class NotMet(Exception):
    """The fault found no such statement or process."""


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Service:
    """`foldlog serve` on a database, as a process of its own, with tokens as in production."""

    def __init__(self, folder: Path, database_url: str):
        self._folder = folder
        make_keys(folder / "keys")
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "service.log").open("ab")
        self._command = [
            *(sys.executable, "-m", "foldlog", "serve"),
            *("--data", str(folder / "data"), "--port", str(self.port), "--workers", "2"),
        ]
        self._env = environment() | {
            "FOLDLOG_DATABASE_URL": database_url,
            "FOLDLOG_KEYS": str(folder / "keys"),
            "FOLDLOG_ACCESS": "tokens",
            "FOLDLOG_ADMIN_TOKEN": ADMIN_TOKEN,
        }
        self._admin = httpx.Client(base_url=self.url, headers=bearer(ADMIN_TOKEN), timeout=30)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=self._log, stderr=self._log, env=self._env
        )
        self.wait_until_ready()

    def wait_until_ready(self, seconds: float = READY_SECONDS_MAX) -> None:
        deadline = time.monotonic() + seconds
        while not is_ready(self.url):
            assert self.process.poll() is None, "the service has ended"
            assert time.monotonic() < deadline, "the service is not ready again"
            time.sleep(0.05)

    def log_tail(self) -> str:
        lines = (self._folder / "service.log").read_text("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if '"level":"info"' not in line)[-10_000:]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def processes(self) -> dict[str, list[psutil.Process]]:
        found: dict[str, list[psutil.Process]] = {"web worker": [], "projector": []}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                if "foldlog web" in command:
                    found["web worker"].append(process)
                elif "foldlog projector" in command:
                    found["projector"].append(process)
        return found

    def grant(self, space: str, role: str, device: str | None = None) -> str:
        """Returns a new token. The grant is an event of the space."""
        body = {"role": role} | ({"device": device} if device else {})
        answer = answered(lambda: self._admin.post(f"/v1/admin/spaces/{space}/tokens", json=body))
        return str(answer.json()["token"])

    def metrics(self) -> str:
        return self._get("/metrics").text

    def _get(self, path: str, **query: int | str) -> httpx.Response:
        return answered(lambda: self._admin.get(path, params=query))

    def log(self, space: str) -> list[tuple[int, str]]:
        """Reads seq and id of all events from the service."""
        found: list[tuple[int, str]] = []
        after, mark, more = 0, "", True
        while more:
            path = f"/v1/spaces/{space}/events"
            page = self._get(path, after=after, mark=mark, limit=1_000).json()
            found += [(event["seq"], event["id"]) for event in page["events"]]
            after, mark, more = page["through"], page["mark"], page["more"]
        return found

    def verify(self, space: str) -> str:
        """Returns the complaints of `foldlog verify` about log, tiles and master table."""
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [sys.executable, "-m", "foldlog", "verify", space],
                env=self._env,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0 or time.monotonic() > deadline:
                return "" if done.returncode == 0 else done.stdout + done.stderr
            time.sleep(1)  # the projections may still be behind


class World:
    """PostgreSQL, a proxy in front of it, and the service that connects to the proxy."""

    def __init__(self, folder: Path, rng: random.Random):
        self.rng = rng
        self.cluster = EmbeddedPostgres(folder / "db", settings=SMALL)
        self.cluster.start()
        sockets = Path(str(conninfo_to_dict(self.cluster.url)["host"]))
        self.proxy = Proxy(folder / "proxy", sockets)
        migrate(self.cluster.url)
        grant(self.cluster.url, SERVICE_ROLE)
        url = make_conninfo(self.cluster.service_url, host=str(self.proxy.folder))
        self.service = Service(folder, url)
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def close(self) -> int:
        code = self.service.stop()
        self._ending.set()
        self._keeper.join()
        self.proxy.close()
        self.cluster.stop()
        return code

    def _keep(self) -> None:
        """Restarts a PostgreSQL that has ended, as an init system does."""
        while not self._ending.wait(0.2):
            if not self.cluster.is_running():
                with suppress(Exception):  # the disk may still be full
                    self.cluster.start()

    @property
    def processes(self) -> dict[str, list[psutil.Process]]:
        """The processes of the service and of PostgreSQL, by kind."""
        found = self.service.processes
        found["postmaster"] = [psutil.Process(self.cluster.pid)]
        found["backend"] = []
        for process in found["postmaster"][0].children():
            with suppress(psutil.NoSuchProcess):
                if f"{SERVICE_ROLE} foldlog" in " ".join(process.cmdline()):
                    found["backend"].append(process)
        return found

    def one(self, kind: str) -> psutil.Process:
        found = sorted(self.processes[kind], key=lambda process: process.pid)
        if not found:
            raise NotMet
        return self.rng.choice(found)

    def sql(self, *statements: str) -> None:
        """Runs statements as the superuser, on a direct connection."""
        with self.session("postgres") as conn:
            for statement in statements:
                conn.execute(statement.encode())

    def session(self, database: str = "foldlog", *, autocommit: bool = True) -> psycopg.Connection:
        url = make_conninfo(self.cluster.superuser_url, dbname=database)
        return psycopg.connect(url, autocommit=autocommit)


@dataclass(frozen=True)
class Fault:
    name: str
    do: Callable[[World], None]

    def __str__(self) -> str:
        return self.name


def _to_statement(fault: str, statement: str) -> Fault:
    def do(world: World) -> None:
        world.proxy.arm(fault, statement)
        met = world.proxy.hit.wait(5)
        world.proxy.disarm()
        if not met:
            raise NotMet

    return Fault(f"{fault}: {statement}", do)


def _kill(kind: str) -> Fault:
    def do(world: World) -> None:
        process = world.one(kind)
        process.kill()
        until(lambda: _has_ended(process))

    return Fault(f"kill -9 {kind}", do)


def _halt(kind: str, seconds: float) -> Fault:
    def do(world: World) -> None:
        with _halted([world.one(kind)]):
            time.sleep(seconds)

    return Fault(f"SIGSTOP {kind}, {seconds:g} s", do)


@contextmanager
def _halted(processes: list[psutil.Process]) -> Iterator[None]:
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _halt_all_of_postgres(world: World) -> None:
    with _halted([*world.processes["postmaster"], *world.processes["backend"]]):
        time.sleep(7)


def _network_gone(world: World) -> None:
    world.proxy.is_cut = True
    world.proxy.cut_all()
    time.sleep(world.rng.uniform(0.5, 3))
    world.proxy.is_cut = False


def _network_silent(world: World) -> None:
    world.proxy.is_silent = True
    time.sleep(7)
    world.proxy.is_silent = False


def _restart(number: signal.Signals, name: str) -> Fault:
    def do(world: World) -> None:
        postmaster = psutil.Process(world.cluster.pid)
        os.kill(postmaster.pid, number)  # the keeper starts it again
        until(lambda: _has_ended(postmaster))

    return Fault(f"PostgreSQL restarts, {name}", do)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _terminate(world: World) -> None:
    world.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{SERVICE_ROLE}'"
    )


def _read_only(world: World) -> None:
    world.sql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        until(lambda: _ready(world).status_code == 503)
        # A worker that lost its connection to an earlier fault reports that first.
        until(lambda: "only reads" in _writes(world))
        time.sleep(2)
        assert "only reads" in _writes(world)
    finally:
        world.sql(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )


def _ready(world: World) -> httpx.Response:
    return httpx.get(f"{world.service.url}/readyz", timeout=10)


def _writes(world: World) -> str:
    answer = _ready(world)
    assert answer.status_code == 503, "the service is ready, but the database is read-only"
    return str(answer.json()["checks"]["writes"])


def _no_connections(world: World) -> None:
    world.sql(f"ALTER ROLE {SERVICE_ROLE} CONNECTION LIMIT 0")
    try:
        _terminate(world)
        time.sleep(2)
    finally:
        world.sql(f"ALTER ROLE {SERVICE_ROLE} CONNECTION LIMIT -1")


def _locked(world: World) -> None:
    """A session locks the rows of all spaces for longer than the lock timeout."""
    with world.session(autocommit=False) as conn:
        conn.execute("SELECT FROM spaces FOR UPDATE")
        time.sleep(4)


def _no_memory(world: World) -> None:
    """PostgreSQL fails with 53200, as it does when it has no memory for a statement."""
    with world.session() as conn:
        conn.execute(
            "CREATE FUNCTION no_memory() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE SQLSTATE '53200' USING MESSAGE = 'out of memory'; END $$"
        )
        conn.execute(
            "CREATE TRIGGER no_memory BEFORE UPDATE ON spaces"
            " FOR EACH ROW EXECUTE FUNCTION no_memory()"
        )
        try:
            time.sleep(1)
        finally:
            conn.execute("DROP FUNCTION no_memory CASCADE")


def _full_disk(world: World) -> None:
    """Fills the disk: tables cannot grow (53100), then the log cannot, and PostgreSQL crashes."""
    ballast = world.cluster.folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for seconds in (3, 3):
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    with suppress(OSError):
                        while file.write(bytes(2**16)):
                            pass
                    time.sleep(0.05)
                # PostgreSQL could still fill the files that it has allocated.
                with suppress(psycopg.Error):
                    world.sql(*["SELECT pg_switch_wal()", "CHECKPOINT"] * 5)
    finally:
        ballast.unlink()


FULL_DISK = Fault("disk full", _full_disk)

#: faults of a connection, which the proxy does
AT_STATEMENTS = [
    _to_statement(fault, statement)
    for statement in (
        *("who calls", "append", "look under the lock"),
        *("begin", "copy", "move the head", "commit"),
    )
    for fault in (*CUTS, *SLOW)
]
OTHERS = [
    *(_kill(kind) for kind in ("web worker", "projector", "backend", "postmaster")),
    _halt("web worker", 2),
    _halt("projector", 2),
    _halt("backend", 7),
    _halt("postmaster", 3),
    Fault("SIGSTOP all of PostgreSQL, 7 s", _halt_all_of_postgres),
    Fault("network gone", _network_gone),
    Fault("network silent, 7 s", _network_silent),
    _restart(signal.SIGINT, "fast"),
    _restart(signal.SIGQUIT, "immediate"),
    Fault("backends terminated (57P01)", _terminate),
    Fault("read-only (25006)", _read_only),
    Fault("no more connections (53300)", _no_connections),
    Fault("out of memory (53200)", _no_memory),
    Fault("a lock that is held, 4 s (55P03)", _locked),
]


@contextmanager
def small_disk(folder: Path, size: int = DISK_BYTES) -> Iterator[bool]:
    """Mounts a file system for the database. Yields `False` if mounting is forbidden."""
    folder = folder / "db"
    folder.mkdir()
    options = f"size={size},mode=0711"
    mounting = ["mount", "-t", "tmpfs", "-o", options, "foldlog-faults", str(folder)]
    try:
        is_own = os.geteuid() == 0 and subprocess.run(mounting, check=False).returncode == 0
    except FileNotFoundError:
        is_own = False
    try:
        yield is_own
    finally:
        if is_own:
            subprocess.run(["umount", "-l", str(folder)], check=True)
