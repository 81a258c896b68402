"""Starts the processes of `foldlog serve`, restarts those that die, and stops them together.

The parent process starts the child processes in a fixed order, and stops them in the reverse order.
The children also end if the parent is killed, because each child reads from a pipe whose other end
only the parent holds open. When the parent dies, this read ends, and the child exits (see
`exit_with_parent`).
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

#: The environment variable with a child's end of the pipe.
PARENT_PIPE = "FOLDLOG_PARENT_PIPE"
#: The time limit for a child to stop after its parent has died.
ORPHAN_GRACE_SECONDS = 10.0

POLL_SECONDS = 0.1
DATABASE_POLL_SECONDS = 0.5
STOP_TIMEOUT_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Database(Protocol):
    """A database server, such as `EmbeddedPostgres`, that the supervisor restarts when it dies."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """Stops the server. If `start` is still running in another thread, `stop` cancels it."""

    def is_running(self) -> bool: ...

    def maintain(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Child:
    """A child process that the supervisor keeps running.

    The program of the child should call `exit_with_parent()` when it starts. The child then ends if
    the supervisor dies.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  #: added to ours
    fds: Sequence[int] = ()  #: file descriptors that it inherits
    stop_timeout_seconds: float = STOP_TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Defines how long to wait before a child is restarted, and when to give up.

    If a child dies `first_deaths_max` times before it has ever run for `stable_seconds`, the
    supervisor exits.
    """

    first_seconds: float = 0.5
    max_seconds: float = 30.0
    #: a child that has run this long is stable, and its number of deaths is set to 0
    stable_seconds: float = 10.0
    #: A child that was never stable makes the supervisor exit after this many deaths, because the
    #: operator must see errors such as a port in use, instead of a silent restart loop.
    first_deaths_max: int = 5

    def delay(self, deaths: int) -> float:
        """Returns how many seconds to wait before the next restart of the child.

        `deaths` is at least 1. It is the number of times that the child has died since it last ran
        for `stable_seconds`. The delay doubles with each death, up to `max_seconds`.
        """
        assert deaths >= 1
        doublings = min(deaths - 1, 32)
        return float(min(self.max_seconds, self.first_seconds * 2**doublings))


class Supervisor:
    """Runs child processes, and restarts those that die, until a stop is requested.

    Call `run` in the main thread. The argument `database` is an optional database server, which
    must already run. A separate thread restarts this server when it dies, because a recovery of the
    database may take minutes. At the end, the supervisor stops all children, and then the database.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        database: Database | None = None,
        backoff: Backoff | None = None,
    ):
        names = [child.name for child in children]
        assert len(set(names)) == len(names), f"two children have the same name: {names}"
        self._backoff = backoff or Backoff()
        self._database = database
        # A signal handler may put into a SimpleQueue at any moment, while an Event may deadlock.
        self._stop_requests: queue.SimpleQueue[int] = queue.SimpleQueue()
        # The kernel closes the writing end when we die, and this ends the children's read.
        self._pipe_read, self._pipe_write = os.pipe()
        self._processes = [_Process(child, self._pipe_read, self._backoff) for child in children]

    def request_stop(self) -> None:
        """Makes `run` stop all children and return, as a SIGTERM does. Any thread may call this."""
        self._stop_requests.put(signal.SIGTERM)

    def run(self) -> int:
        """Runs all child processes until a stop is requested, then stops them and returns 0.

        Returns 1 if it gave up: a child died `first_deaths_max` times before it ever ran for
        `stable_seconds`.
        """
        keeper = _DatabaseKeeper(self._database, self._backoff) if self._database else None
        with self._handling_signals():
            try:
                if keeper:
                    keeper.start()
                for process in self._processes:
                    process.start()
                return self._restart_until_stopped()
            finally:
                self._stop_all()
                if keeper:
                    keeper.end()
                os.close(self._pipe_write)
                os.close(self._pipe_read)

    def _restart_until_stopped(self) -> int:
        """Restarts dead children until a stop is requested, and then returns 0.

        Returns 1 if a child died `first_deaths_max` times before it ever ran for `stable_seconds`.
        """
        while not self._is_stop_requested(POLL_SECONDS):
            for process in self._processes:
                process.restart_if_dead()
                if process.has_never_started:
                    log.error("a process never came up, giving up", name=process.child.name)
                    return 1
        return 0

    def _is_stop_requested(self, seconds: float) -> bool:
        """Waits for a stop request, at most `seconds`. Returns `True` if a request has arrived."""
        try:
            self._stop_requests.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def _stop_all(self) -> None:
        """Stops all children, beginning with the one that was started last.

        A child that still runs after its `stop_timeout_seconds` is killed. If a second stop request
        arrives meanwhile, all remaining children are killed at once.
        """
        is_urgent = False
        for process in reversed(self._processes):
            deadline = time.monotonic() + process.child.stop_timeout_seconds
            process.terminate()
            while process.is_running() and not is_urgent and time.monotonic() < deadline:
                is_urgent = self._is_stop_requested(POLL_SECONDS)
            process.kill()

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Installs signal handlers for the `with` block: a SIGTERM or SIGINT stops the supervisor.

        Each of these signals has the same effect as a call of `request_stop`. After the block, the
        previous signal handlers are installed again.
        """

        def request(number: int, _: FrameType | None) -> None:
            self._stop_requests.put(number)

        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Process:
    """Runs one child: starts its process, restarts it if it dies, and stops it."""

    def __init__(self, child: Child, pipe_read: int, backoff: Backoff):
        self.child = child
        self._pipe_read = pipe_read
        self._backoff = backoff
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._deaths = 0  # since it was last stable
        self._was_ever_stable = False

    @property
    def has_never_started(self) -> bool:
        """Tells whether the supervisor should give up, because each start of the child failed.

        This is the case if the child has died `first_deaths_max` times before it ever ran for
        `stable_seconds`.
        """
        return not self._was_ever_stable and self._deaths >= self._backoff.first_deaths_max

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the child process in its own session.

        Therefore, Ctrl-C in the terminal sends a signal only to the parent process.
        """
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
        """Restarts the child if it has died and the delay before the restart has passed."""
        now = time.monotonic()
        if self.is_running():
            if now - self._started_at > self._backoff.stable_seconds:
                self._was_ever_stable, self._deaths = True, 0
        elif self._process is not None:
            self._schedule_restart(self._process.returncode)
        elif now >= self._restart_at:
            self._restart()

    def _schedule_restart(self, code: int | None) -> None:
        self._deaths += 1
        delay = self._backoff.delay(self._deaths)
        log.error("died, starting again", name=self.child.name, code=code, delay_seconds=delay)
        self.kill()  # its own child processes may still hold the port
        self._restart_at = time.monotonic() + delay

    def _restart(self) -> None:
        try:
            self.start()
        except OSError as exc:  # a shortage of memory or processes may be temporary
            self._schedule_restart(exc.errno)

    def terminate(self) -> None:
        if self._process is not None and self.is_running():
            log.info("stopping", name=self.child.name, pid=self._process.pid)
            self._process.terminate()

    def kill(self) -> None:
        """Kills the child and its own child processes."""
        if self._process is None:
            return
        if self.is_running():
            log.warning("did not stop, killing it", name=self.child.name, pid=self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


class _DatabaseKeeper:
    """Checks in a thread whether the database server still runs, and restarts it if it has died.

    The other processes keep running, and connect to the restarted server on their own.
    """

    def __init__(self, database: Database, backoff: Backoff):
        self._database = database
        self._backoff = backoff
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="database-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stops the database server, and ends the thread.

        The thread may be restarting the server at this moment. So this method calls `stop` of the
        database again and again until the thread has ended.
        """
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
        self._database.maintain()


def is_child() -> bool:
    """Returns whether a supervisor started this process."""
    return PARENT_PIPE in os.environ


def exit_with_parent(grace_seconds: float = ORPHAN_GRACE_SECONDS) -> None:
    """Makes this child process end when its parent process dies.

    When the parent dies, this process sends itself a SIGTERM. If this process still runs after
    `grace_seconds`, it exits at once, with status 1. If this process was started by hand, outside
    of the supervisor, the function has no effect.
    """
    if not is_child():
        return
    fd = int(os.environ[PARENT_PIPE])

    def wait() -> None:
        while os.read(fd, 1):
            pass  # the parent writes no data; the read ends when the parent dies
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watcher", daemon=True).start()
