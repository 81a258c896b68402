"""The supervisor starts, restarts and stops processes together, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from foldlog.infrastructure.supervisor import Backoff, Child, Supervisor, exit_with_parent

WAIT_SECONDS = 20.0
ROOT = Path(__file__).resolve().parents[2]
QUICK = Backoff(first_seconds=0.05, max_seconds=0.2, stable_seconds=0.05)

#: A child that notes in a file, named like itself, when it starts and when it is asked to stop.
CHILD = """
import os, signal, sys, time
from foldlog.infrastructure.supervisor import exit_with_parent
name, manner = sys.argv[1:]
def note(what):
    with open("notes", "a") as file:
        file.write(f"{name} {what} {os.getpid()}\\n")
def stop(*_):
    note("stops")
    if manner != "stubborn":
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if manner != "broken":
    exit_with_parent(grace_seconds=0.2)
    note("starts")
    while True:
        time.sleep(0.05)
"""

#: A separate parent process, for tests that kill the parent or send it signals.
PARENT = """
import sys
from foldlog.infrastructure.supervisor import *
quick = Backoff(first_seconds=0.05, max_seconds=0.2, stable_seconds=5)
def child(name, manner):
    return Child(name=name, argv=[sys.executable, "-c", sys.argv[1], name, manner],
                 stop_timeout_seconds=float(sys.argv[2]))
children = [child(*word.split(":")) for word in sys.argv[3:]]
sys.exit(Supervisor(children, backoff=quick).run())
"""


class Parent:
    """A small `foldlog serve`, in a folder where its children write notes."""

    def __init__(self, folder: Path, *children: str, stop_timeout_seconds: float = WAIT_SECONDS):
        self._notes = folder / "notes"
        command = [sys.executable, "-c", PARENT, CHILD, str(stop_timeout_seconds), *children]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
        )

    def notes(self, what: str) -> list[tuple[str, int]]:
        """Returns (name, pid) of each note, in order."""
        text = self._notes.read_text() if self._notes.exists() else ""
        words = [line.split() for line in text.splitlines()]
        return [(name, int(pid)) for name, noted, pid in words if noted == what]

    def await_starts(self, count: int) -> list[int]:
        wait_until(lambda: len(self.notes("starts")) == count)
        return [pid for _, pid in self.notes("starts")]

    def signal_and_wait(self, *numbers: signal.Signals) -> int:
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.3)
        return self.process.wait(WAIT_SECONDS)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    parents = []

    def make(*children: str, **options: float) -> Parent:
        parents.append(Parent(tmp_path, *children, **options))
        return parents[-1]

    yield make
    for each in parents:
        each.process.kill()
        each.process.wait()
        for _, pid in each.notes("starts"):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_all_in_reverse_order(
    parent: Callable[..., Parent], number: signal.Signals
) -> None:
    """The last started child depends on the first, so it ends first; the exit code is 0."""
    family = parent("first:good", "second:good", "third:good")
    pids = family.await_starts(3)
    assert family.signal_and_wait(number) == 0
    assert [name for name, _ in family.notes("stops")] == ["third", "second", "first"]
    assert not any(is_alive(pid) for pid in pids)


def test_a_child_that_dies_is_started_again(parent: Callable[..., Parent]) -> None:
    """The other children keep running."""
    family = parent("first:good", "second:good")
    first, second = sorted(family.await_starts(2))
    for starts in (3, 4):
        os.kill(dict(family.notes("starts"))["first"], signal.SIGKILL)
        family.await_starts(starts)
    assert [name for name, _ in family.notes("starts")].count("first") == 3
    assert dict(family.notes("starts"))["second"] in (first, second)
    assert family.signal_and_wait(signal.SIGTERM) == 0


def test_a_child_that_never_comes_up_ends_it_all(parent: Callable[..., Parent]) -> None:
    """The operator sees the error, such as a port in use, instead of an endless loop."""
    family = parent("good:good", "broken:broken")
    assert family.process.wait(WAIT_SECONDS) == 1
    assert not any(is_alive(pid) for _, pid in family.notes("starts"))


def test_a_child_that_exceeds_its_memory_is_started_again(tmp_path: Path) -> None:
    """It counts as a child that came up, so the supervisor keeps on. A child within stays."""
    script = "import os, time; open({name!r}, 'a').write('.'); kept = b'x' * {size}; time.sleep(60)"
    children = [
        Child(
            name=name,
            argv=[sys.executable, "-c", script.format(name=str(tmp_path / name), size=size)],
            memory_bytes_max=100 * 2**20,
        )
        for name, size in [("greedy", 200 * 2**20), ("modest", 2**20)]
    ]
    supervisor = Supervisor(children, backoff=QUICK)

    def starts(name: str) -> int:
        return len((tmp_path / name).read_text()) if (tmp_path / name).exists() else 0

    def stop_after_some_lives() -> None:
        wait_until(lambda: starts("greedy") > QUICK.first_deaths_max + 1)
        supervisor.request_stop()

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop_after_some_lives)
        assert supervisor.run() == 0
        stopping.result()
    assert starts("modest") == 1


def test_a_stubborn_child_is_killed_at_its_deadline(parent: Callable[..., Parent]) -> None:
    """A hanging child delays the stop only up to its deadline, and the others end cleanly."""
    family = parent("good:good", "stubborn:stubborn", stop_timeout_seconds=0.3)
    pids = family.await_starts(2)
    assert family.signal_and_wait(signal.SIGTERM) == 0
    assert [name for name, _ in family.notes("stops")] == ["stubborn", "good"]
    assert not any(is_alive(pid) for pid in pids)


def test_a_second_signal_speeds_it_up(parent: Callable[..., Parent]) -> None:
    """A second Ctrl-C kills the remaining children at once."""
    family = parent("stubborn:stubborn")
    (pid,) = family.await_starts(1)
    began = time.monotonic()
    assert family.signal_and_wait(signal.SIGINT, signal.SIGINT) == 0
    assert time.monotonic() - began < WAIT_SECONDS / 2
    assert not is_alive(pid)


@pytest.mark.parametrize("manner", ["good", "stubborn"])
def test_no_child_outlives_a_killed_parent(parent: Callable[..., Parent], manner: str) -> None:
    """After kill -9 of the parent, the children end as after a SIGTERM, and a hanging child is
    ended too. Otherwise they would hold the port.
    """
    family = parent(f"first:{manner}", f"second:{manner}")
    pids = family.await_starts(2)
    family.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    assert len(family.notes("stops")) == 2


def test_a_child_takes_its_own_children_along(tmp_path: Path) -> None:
    """The child processes of a killed web server still hold its port, which the next one needs."""
    script = textwrap.dedent("""
        import subprocess, time
        worker = subprocess.Popen(["sleep", "600"])
        with open("workers", "a") as file:
            file.write(f"{worker.pid}\\n")
        time.sleep(0.2)
        """)
    supervisor = Supervisor(
        [
            Child(
                name="web",
                argv=[sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}){script}"],
            )
        ],
        backoff=QUICK,
    )
    workers = tmp_path / "workers"

    def stop_after_some_lives() -> None:
        wait_until(lambda: workers.exists() and workers.read_text().count("\n") > 2)
        supervisor.request_stop()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(stop_after_some_lives)
        assert supervisor.run() == 0
    wait_until(lambda: not any(is_alive(int(pid)) for pid in workers.read_text().split()))


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """The children that were started before it are stopped."""
    sleeper = Child(name="sleeper", argv=["sleep", "600"])
    supervisor = Supervisor([sleeper, Child(name="typo", argv=[str(tmp_path / "typo")])])
    with pytest.raises(FileNotFoundError):
        supervisor.run()
    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]


def test_by_hand_a_child_runs_without_a_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of the service can also be started alone, for debugging."""
    monkeypatch.delenv("FOLDLOG_PARENT_PIPE", raising=False)
    before = threading.active_count()
    exit_with_parent()
    assert threading.active_count() == before


class SmallDatabase:
    """A process in place of a database: tests can kill it and make its starts fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.starts = 0
        self._changing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._changing:
            self.starts += 1
            if 1 < self.starts <= 1 + self.failures:
                raise OSError("disk full")
            self._process = subprocess.Popen(["sleep", "600"])

    def stop(self) -> None:
        with self._changing:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def maintain(self) -> None: ...

    def die(self) -> None:
        assert self._process is not None
        self._process.kill()


@pytest.mark.parametrize("failures", [0, 2])
def test_a_database_that_dies_is_started_again(failures: int) -> None:
    """It is started again even after failed attempts; the children keep running, and it is stopped
    last.
    """
    database = SmallDatabase(failures)
    database.start()
    supervisor = Supervisor(
        [Child(name="child", argv=["sleep", "600"])], database=database, backoff=QUICK
    )

    def kill_and_stop() -> list[int]:
        wait_until(lambda: len(sleepers()) == 2)
        database.die()
        wait_until(lambda: database.starts == 2 + failures and database.is_running())
        living = sleepers()
        supervisor.request_stop()
        return living

    with ThreadPoolExecutor(1) as thread:
        living = thread.submit(kill_and_stop)
        assert supervisor.run() == 0
    assert len(living.result()) == 2
    assert not database.is_running()
    assert not sleepers()


def sleepers() -> list[int]:
    children = psutil.Process().children()
    return [child.pid for child in children if child.name() == "sleep" and is_alive(child.pid)]
