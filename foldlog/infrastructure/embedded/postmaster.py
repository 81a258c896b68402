"""Runs the postmaster, PostgreSQL's main process, as a child of this process.

The postmaster stops when this process stops it, or when this process dies.
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
    """One running postmaster, in its own session, so Ctrl-C reaches only the parent process.

    A second child, a small shell script, watches the parent. It reads from a pipe whose other end
    the parent holds open. When the parent dies, the read ends, and the script shuts the postmaster
    down. If the script is killed too, the next start stops the remaining processes.

    Linux's PR_SET_PDEATHSIG is unsuitable: it must be set between fork and exec, which is unsafe in
    a program with threads, and it already reacts to the end of the thread that started the child.
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
        """Shuts PostgreSQL down in a way that makes recovery at the next start unnecessary.

        If this takes too long, an immediate shutdown follows, and then a kill; after these,
        PostgreSQL recovers its data at the next start.
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
        """Kills the postmaster and the script that watches the parent.

        PostgreSQL recovers its data at the next start.
        """
        self._dismiss_watcher()
        self._process.kill()
        self._process.wait()

    def _dismiss_watcher(self) -> None:
        """Kills the script that watches the parent.

        This must happen before the postmaster ends, because another process may then get the
        postmaster's pid, and the script would send a signal to it.
        """
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()


def is_alive(pid: int) -> bool:
    """Tells whether a process with this pid exists, whichever user it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
