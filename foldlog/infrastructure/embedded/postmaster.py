"""Runs PostgreSQL's main process, the postmaster, as a child of this process.

The postmaster ends when this process stops it, and also when this process dies.
"""

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
    """One running postmaster. It ends even if this process (its parent) is killed.

    A second child process, a small shell script, waits for the end of the parent. It reads from a
    pipe into which only the parent can write. When the parent dies, the kernel closes the pipe, so
    the read returns, and the script sends SIGINT to the postmaster, which then shuts down. If the
    script was killed too, the next start ends the remaining processes.

    The postmaster has its own session, so Ctrl-C in the terminal reaches only the parent.

    Linux's PR_SET_PDEATHSIG is unsuitable for this purpose. It must be set between fork and exec,
    which is unsafe in a program with threads. It would also end the postmaster when the thread that
    started it ends.
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
        """Shuts PostgreSQL down, so that its next start needs no recovery.

        If the shutdown takes more than `STOP_FAST_SECONDS`, the method sends SIGQUIT, which ends
        PostgreSQL at once. If PostgreSQL still runs after that, it is killed. In these two cases,
        its next start begins with a recovery.
        """
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
        """Kills the postmaster, and the script that waits for the end of the parent process.

        The next start of PostgreSQL begins with a recovery.
        """
        self._dismiss_watcher()
        self._process.kill()
        self._process.wait()

    def _dismiss_watcher(self) -> None:
        """Kills the script that waits for the end of the parent process.

        Call this before the postmaster ends. Once the postmaster has ended, another process may get
        its pid. If the script still ran then, it could send SIGINT to this other process.
        """
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()


def is_alive(pid: int) -> bool:
    """Tells whether a process with this pid exists, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
