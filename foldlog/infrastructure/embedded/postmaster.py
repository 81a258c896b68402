"""The postmaster as our child process: it stops when we stop it, or when we die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import structlog

from .account import Account

#: A fast shutdown writes a checkpoint, which may flush all of shared_buffers.
STOP_FAST_SECONDS = 60.0
STOP_IMMEDIATE_SECONDS = 10.0

#: `read` ends when the pipe's only writer, the owner, is dead.
WATCH = 'read _; kill -INT "$1"'

log = structlog.get_logger(__name__)


class Postmaster:
    """One run of PostgreSQL, in its own session, so that Ctrl-C reaches only us.

    A watcher shell waits on a pipe whose other end we hold, and shuts the postmaster down when we
    die. (Linux's PR_SET_PDEATHSIG is unsuitable: it must be set between fork and exec, which is
    unsafe in a program with threads, and it reports the end of the starting thread.) If the
    watcher is killed too, the next start stops the remaining processes.
    """

    def __init__(self, command: Sequence[str | Path], account: Account, log_fd: int):
        options = account.process_options()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log_fd, stderr=log_fd, **options
        )
        try:
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", WATCH, "foldlog-watch", str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **options,
            )
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Shuts down: PostgreSQL ends all sessions and needs no recovery at the next start."""
        for signal_number, seconds in (
            (signal.SIGINT, STOP_FAST_SECONDS),
            (signal.SIGQUIT, STOP_IMMEDIATE_SECONDS),
        ):
            self._process.send_signal(signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
            log.warning("PostgreSQL did not stop", pid=self.pid, signal=signal_number.name)
        self.kill()

    def kill(self) -> None:
        """Kills the postmaster and the watcher; PostgreSQL recovers at the next start."""
        self._dismiss_watcher()
        self._process.kill()
        self._process.wait()

    def _dismiss_watcher(self) -> None:
        """Ends the watcher before the postmaster's pid can be reused by another process."""
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()


def is_alive(pid: int) -> bool:
    """Tells whether a process exists, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
