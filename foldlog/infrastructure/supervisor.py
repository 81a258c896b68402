"""Keeps the processes of `foldlog serve` alive, and ends them together.

One parent owns everything: it starts the children, starts again what dies, and stops all in
reverse order. None outlives it, not even when it is killed: each child holds the reading end of
a pipe that only the parent could write to, and ends when reading does (`exit_with_parent`).

A life, in the order of `Supervisor.run`: start all, keep all, stop all.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

import structlog

#: names the pipe's end in a child's environment
PARENT_PIPE = "FOLDLOG_PARENT_PIPE"
#: how long a child whose parent died may take to finish what it has begun
ORPHAN_GRACE_SECONDS = 10.0

POLL_SECONDS = 0.1
DATABASE_POLL_SECONDS = 0.5
STOP_TIMEOUT_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Database(Protocol):
    """What is watched besides the children; `EmbeddedPostgres` is one."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """Also makes a `start` give up that is under way in another thread."""

    def is_running(self) -> bool: ...

    def tend(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process to keep. It should call `exit_with_parent()` first of all."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  #: added to the parent's own
    fds: Sequence[int] = ()  #: open files that it inherits
    stop_timeout_seconds: float = STOP_TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait before starting again what died, and when to give up."""

    first_seconds: float = 0.5
    max_seconds: float = 30.0
    #: what lived this long had started well; its next death is the first again
    stable_seconds: float = 10.0
    #: what never once started well is given up after so many deaths: a port in use, a typing
    #: error. It must be seen by whoever typed the command, not hidden in a loop.
    first_deaths_max: int = 5

    def delay(self, deaths: int) -> float:
        assert deaths >= 1
        doublings = min(deaths - 1, 32)
        return float(min(self.max_seconds, self.first_seconds * 2**doublings))


class Supervisor:
    """Runs the children until it is asked to stop; `run` belongs in the main thread.

    A database that is given is already started; it is kept like a child, in a thread of its own
    because its recovery may take minutes, and it is stopped last.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        database: Database | None = None,
        backoff: Backoff | None = None,
    ):
        names = [child.name for child in children]
        assert len(set(names)) == len(names), f"two children of one name: {names}"
        self._backoff = backoff or Backoff()
        self._database = database
        # A SimpleQueue, for a signal handler may put into it at any moment; an Event may deadlock.
        self._wishes: queue.SimpleQueue[int] = queue.SimpleQueue()
        # The writing end is closed by the kernel when we die, which is what the children wait for.
        self._pipe_read, self._pipe_write = os.pipe()
        self._kept = [_Kept(child, self._pipe_read, self._backoff) for child in children]

    def request_stop(self) -> None:
        """The same as a SIGTERM, from any thread."""
        self._wishes.put(signal.SIGTERM)

    def run(self) -> int:
        """Returns the exit code: 0 when it was asked to stop, 1 when a child never came up."""
        keeper = _DatabaseKeeper(self._database, self._backoff) if self._database else None
        with self._listening():
            try:
                if keeper:
                    keeper.start()
                for kept in self._kept:
                    kept.start()
                return self._keep()
            finally:
                self._stop_all()
                if keeper:
                    keeper.end()
                os.close(self._pipe_write)
                os.close(self._pipe_read)

    def _keep(self) -> int:
        while not self._is_asked_to_stop(POLL_SECONDS):
            for kept in self._kept:
                kept.restart_if_dead()
                if kept.is_hopeless:
                    log.error("a process never came up, giving up", name=kept.child.name)
                    return 1
        return 0

    def _is_asked_to_stop(self, seconds: float) -> bool:
        try:
            self._wishes.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def _stop_all(self) -> None:
        """In reverse order, each with its deadline; asked once more, there are no deadlines."""
        is_urgent = False
        for kept in reversed(self._kept):
            deadline = time.monotonic() + kept.child.stop_timeout_seconds
            kept.ask_to_stop()
            while kept.is_running() and not is_urgent and time.monotonic() < deadline:
                is_urgent = self._is_asked_to_stop(POLL_SECONDS)
            kept.end()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def wish(number: int, _: FrameType | None) -> None:
            self._wishes.put(number)

        before = {number: signal.signal(number, wish) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Kept:
    """One child over all its lives."""

    def __init__(self, child: Child, pipe_read: int, backoff: Backoff):
        self.child = child
        self._pipe_read = pipe_read
        self._backoff = backoff
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at = 0.0
        self._deaths = 0  # since it last lived long enough
        self._was_ever_stable = False

    @property
    def is_hopeless(self) -> bool:
        return not self._was_ever_stable and self._deaths >= self._backoff.first_deaths_max

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it in a session of its own: Ctrl-C reaches the parent, which stops in order."""
        self._process = subprocess.Popen(
            self.child.argv,
            env=os.environ | self.child.env | {PARENT_PIPE: str(self._pipe_read)},
            stdin=subprocess.DEVNULL,
            pass_fds=[self._pipe_read, *self.child.fds],
            start_new_session=True,
        )
        self._started_at = time.monotonic()
        log.info("started", name=self.child.name, pid=self._process.pid)

    def restart_if_dead(self) -> None:
        now = time.monotonic()
        if self.is_running():
            if now - self._started_at > self._backoff.stable_seconds:
                self._was_ever_stable, self._deaths = True, 0
        elif self._process is not None:
            self._bury(self._process.returncode)
        elif now >= self._start_again_at:
            self._start_again()

    def _bury(self, code: int | None) -> None:
        self._deaths += 1
        delay = self._backoff.delay(self._deaths)
        log.error("died, starting again", name=self.child.name, code=code, delay_seconds=delay)
        self.end()  # its own children may still hold the port
        self._start_again_at = time.monotonic() + delay

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError as exc:  # no memory, no more processes: it may pass
            self._bury(exc.errno)

    def ask_to_stop(self) -> None:
        if self._process is not None and self.is_running():
            log.info("stopping", name=self.child.name, pid=self._process.pid)
            self._process.terminate()

    def end(self) -> None:
        """Kills what is left of it and of its own children."""
        if self._process is None:
            return
        if self.is_running():
            log.warning("did not stop, killing it", name=self.child.name, pid=self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


class _DatabaseKeeper:
    """Starts the database again when it dies. The children meanwhile wait and reconnect."""

    def __init__(self, database: Database, backoff: Backoff):
        self._database = database
        self._backoff = backoff
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="database-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stops the database; again while the thread lives, which may just have begun a start."""
        self._ending.set()
        self._database.stop()
        while self._thread.is_alive():
            self._thread.join(POLL_SECONDS)
            self._database.stop()

    def _keep(self) -> None:
        failures = 0
        delay = DATABASE_POLL_SECONDS
        while not self._ending.wait(delay):
            try:
                self._restart_if_dead()
            except Exception as exc:
                failures += 1
                delay = self._backoff.delay(failures)
                if not self._ending.is_set():
                    log.error("no database", error=str(exc), delay_seconds=delay)
            else:
                failures, delay = 0, DATABASE_POLL_SECONDS

    def _restart_if_dead(self) -> None:
        if not self._database.is_running():
            log.error("the database died, starting it again")
            self._database.start()
        self._database.tend()


def exit_with_parent(grace_seconds: float = ORPHAN_GRACE_SECONDS) -> None:
    """Called by a child: ends this process when the one that started it is gone.

    First as a SIGTERM would, and if that takes too long, at once. Without a supervising parent
    it does nothing, so that every child can also be run by hand.
    """
    if PARENT_PIPE not in os.environ:
        return
    fd = int(os.environ[PARENT_PIPE])

    def wait() -> None:
        while os.read(fd, 1):
            pass  # nobody writes; the end is what we wait for
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watcher", daemon=True).start()
