"""The postmaster as our child: started, asked to stop, and never left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import structlog

from .account import Account

#: A fast shutdown writes a checkpoint, which may have to flush all of shared_buffers.
STOP_FAST_SECONDS = 60.0
STOP_IMMEDIATE_SECONDS = 10.0

#: Reading ends when nobody is left who could write: when the owner is dead, however it died.
WATCH = 'read _; kill -INT "$1"'

log = structlog.get_logger(__name__)


class Postmaster:
    """One run of PostgreSQL, in a session of its own so that Ctrl-C in a terminal misses it.

    A shell beside it waits on a pipe of which only we hold the other end, and asks the postmaster
    to shut down when we are gone. (The kernel could do that, by PR_SET_PDEATHSIG, but it
    would have to be asked between fork and exec, where a program with threads must run nothing,
    and it means the death of the thread that started it.) If the shell is killed too, the next
    start finds the leftovers.
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
        """A fast shutdown: sessions are ended, nothing committed is lost, no recovery after it."""
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
        """Ends it at once, as a crash would; after a stop, only what is left beside it."""
        self._dismiss_watcher()
        self._process.kill()
        self._process.wait()

    def _dismiss_watcher(self) -> None:
        """Before the postmaster's pid is free for others, or it could signal a stranger."""
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()


def is_alive(pid: int) -> bool:
    """Whether a process exists, ours or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
